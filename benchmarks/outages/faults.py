"""Faults of every neighbour, at every moment of a job, of several lengths: what callers see, and what heals.

Each cell is one fault: a job is brought to a moment of its life, the neighbour is killed, frozen, refused,
cut off or slowed for so long, and when it is back a fresh job is posted. Meanwhile a caller asks for the job,
for liveness and for readiness. Printed as a Markdown table; 1 if anything is wrong.

    python -m benchmarks.outages.faults [--lengths 3 30 120] [--neighbours broker postgres s3]
        [--faults killed …] [--moments claim engine publication commit acknowledgement] [--minutes 60]

With --minutes, cells beyond that time are left out, and named as left out.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.service.outages.neighbours import (
    FAULTS,
    MOMENTS,
    NEIGHBOURS,
    Neighbourhood,
    Outcome,
    neighbourhood,
    suffer,
)

Cell = tuple[float, str, str, str]
COLUMNS = (
    "neighbour",
    "fault",
    "moment",
    "seconds",
    "answers meanwhile",
    "slowest",
    "the job",
    "next job after",
)


def row(cell: Cell, outcome: Outcome, wrong: Sequence[str]) -> str:
    """One line of the table."""
    length, neighbour, fault, moment = cell
    told = ", ".join(f"{name} ×{count}" for name, count in sorted(outcome.statuses.items()))
    job = f"{outcome.state}, attempt {outcome.attempts}"
    mark = f" **{'; '.join(wrong)}**" if wrong else ""
    return (
        f"| {neighbour} | {fault} | {moment} | {length:g} | {told} | {outcome.slowest_answer:.1f} s "
        f"| {job} | {outcome.next_job_seconds:.1f} s{mark} |"
    )


def run(there: Neighbourhood, cells: Sequence[Cell], seconds: float) -> tuple[int, list[Cell]]:
    """Run the cells in turn; how many went wrong, and which were left out."""
    ends, wrong_cells = time.monotonic() + seconds, 0
    for number, cell in enumerate(cells):
        if time.monotonic() > ends:
            return wrong_cells, list(cells[number:])
        length, neighbour, fault, moment = cell
        outcome = suffer(there, neighbour, fault, moment, length)
        wrong = outcome.wrong(there.usual_seconds)
        wrong_cells += bool(wrong)
        print(row(cell, outcome, wrong), flush=True)
    return wrong_cells, []


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lengths", type=float, nargs="+", default=[3.0, 30.0, 120.0])
    parser.add_argument("--neighbours", nargs="+", choices=NEIGHBOURS, default=NEIGHBOURS)
    parser.add_argument("--faults", nargs="+", choices=FAULTS, default=FAULTS)
    parser.add_argument("--moments", nargs="+", choices=MOMENTS, default=MOMENTS)
    parser.add_argument("--minutes", type=float, default=24 * 60.0)
    chosen = parser.parse_args(arguments)
    cells = list(itertools.product(chosen.lengths, chosen.neighbours, chosen.faults, chosen.moments))
    home = Path(tempfile.mkdtemp(prefix="offaults-"))
    with neighbourhood(home) as there:
        load = os.getloadavg()[0] / (os.cpu_count() or 1)
        print(f"An undisturbed job: {there.usual_seconds:.1f} s; load per core: {load:.1f}\n")
        print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}", flush=True)
        wrong, left_out = run(there, cells, chosen.minutes * 60)
    print(f"\n{len(cells) - len(left_out)} cells, {wrong} wrong, {len(left_out)} left out; logs in {home}")
    for cell in left_out:
        print(f"  left out: {cell}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
