"""Faults of every neighbour, at every moment of a job, of several lengths: what callers see, and what heals.

Each cell is one fault: a job is brought to a moment of its life, the neighbour is killed, frozen, refused,
cut off or slowed, or a disk is full, for so long, and when that is over a fresh job is posted. Meanwhile a
caller asks for the job, for liveness and for readiness, and posts one more job. Printed as a Markdown table;
1 if anything is wrong.

    python -m benchmarks.outages.faults [--lengths 3 30 120] [--neighbours broker postgres s3 disk]
        [--faults killed … staging …] [--moments claim engine …] [--minutes 60] [--records FILE]
    python -m benchmarks.outages.faults --condense FILE …

With --minutes, cells beyond that time are left out, and named as left out. With --records each cell is also
appended to a file; --condense prints the records of such files as a table with a row for each fault, whose
cells have the slowest answer, the longest time until a fresh job was taken, and the number of moments.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from benchmarks.outages.faults_table import COLUMNS, Record, condensed, heading, read
from tests.service.outages.disks import DISKS, small_disks
from tests.service.outages.neighbours import FAULTS, NEIGHBOURS, neighbourhood
from tests.service.outages.scenes import MOMENTS, Scene, suffer

Cell = tuple[float, str, str, str]
#: Of a disk: before anything is written, while files are, and before the last commit.
DISK_MOMENTS = ("claim", "staging", "commit")
NEIGHBOUR_MOMENTS = tuple(moment for moment in MOMENTS if moment != "staging")
SCENES = ("neighbours", "small disks", "a database's small disk")


def cells_of(chosen: argparse.Namespace) -> dict[str, list[Cell]]:
    """What is to be run, by the scene that it needs."""
    found: dict[str, list[Cell]] = {scene: [] for scene in SCENES}
    # moments before neighbours: where time is short, every fault is had at the first moments
    for length, moment, neighbour in itertools.product(chosen.lengths, chosen.moments, chosen.neighbours):
        disk = neighbour == "disk"
        if moment not in (DISK_MOMENTS if disk else NEIGHBOUR_MOMENTS):
            continue
        for fault in (fault for fault in chosen.faults if fault in (DISKS if disk else FAULTS)):
            scene = 0 if not disk else 2 if fault == "postgres" else 1
            found[SCENES[scene]].append((length, neighbour, fault, moment))
    return found


def open_scene(scene: str, home: Path) -> AbstractContextManager[Scene]:
    """Start it."""
    home.mkdir()
    if scene == SCENES[0]:
        return neighbourhood(home)
    return small_disks(home, postgres=scene == SCENES[2])


def run(scene: Scene, cells: Sequence[Cell], ends: float, records: Path | None) -> tuple[int, list[Cell]]:
    """Run the cells in turn; how many went wrong, and which were left out."""
    wrong_cells = 0
    for number, (length, neighbour, fault, moment) in enumerate(cells):
        if time.monotonic() > ends:
            return wrong_cells, list(cells[number:])
        outcome = suffer(scene, neighbour, fault, moment, length)
        record = Record(neighbour, fault, moment, length, outcome, tuple(outcome.wrong(scene)))
        wrong_cells += bool(record.wrong)
        print(record.line(), flush=True)
        if records is not None:
            record.write(records)
    return wrong_cells, []


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    every_fault = (*FAULTS, *DISKS)
    neighbours = (*NEIGHBOURS, "disk")
    parser.add_argument("--lengths", type=float, nargs="+", default=[3.0, 30.0, 120.0])
    parser.add_argument("--neighbours", nargs="+", choices=neighbours, default=neighbours)
    parser.add_argument("--faults", nargs="+", choices=every_fault, default=every_fault)
    parser.add_argument("--moments", nargs="+", choices=MOMENTS, default=MOMENTS)
    parser.add_argument("--minutes", type=float, default=24 * 60.0)
    parser.add_argument("--records", type=Path)
    parser.add_argument("--condense", type=Path, nargs="+")
    chosen = parser.parse_args(arguments)
    if chosen.condense:
        print(condensed(read(chosen.condense)))
        return 0
    return _run_all(chosen)


def _run_all(chosen: argparse.Namespace) -> int:
    home = Path(tempfile.mkdtemp(prefix="offaults-"))
    ends, wrong, left_out = time.monotonic() + chosen.minutes * 60, 0, list[Cell]()
    for name, cells in cells_of(chosen).items():
        if not cells:
            continue
        with open_scene(name, home / name.replace(" ", "-")) as scene:
            load = os.getloadavg()[0] / (os.cpu_count() or 1)
            print(f"\nAn undisturbed job: {scene.usual_seconds:.1f} s; load per core: {load:.1f}\n")
            print(heading(COLUMNS), flush=True)
            more, left = run(scene, cells, ends, chosen.records)
        wrong, left_out = wrong + more, left_out + left
    print(f"\n{wrong} wrong, {len(left_out)} left out; logs in {home}")
    for cell in left_out:
        print(f"  left out: {cell}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
