"""How far the time left that a job tells is from the time that it then took; and the estimate before it.

    python -m benchmarks.service.eta                       # every job of the list, twice
    python -m benchmarks.service.eta --jobs bias suite     # some of them
    python -m benchmarks.service.eta --trace eta.json      # with what was seen at each second

A service of its own prunes and measures the demo model; each job is asked for its progress every second, as
a dashboard would. Printed is, from a fifth of the job's time on, the factor by which its `eta_seconds` was
furthest from what was left, too long or too short. Near the end (the last twentieth, or two seconds)
a factor says little, so that there the seconds are printed by which it was off. The first round is that of
a worker that has never seen such a job; in the second it knows what its stages cost here. Other work that
comes or goes on the machine while a job runs is seen in these factors.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.sides import processor  # noqa: E402
from demo import __main__ as demo  # noqa: E402
from demo.topics import calibration_text, evaluation_text  # noqa: E402
from optipfair_engine.bias.prompts.own.items import own_items  # noqa: E402
from service.client import OptipfairClient, RefusedError  # noqa: E402

#: The factor that the time left may be off by, from a fifth of a job's time on.
AIM = 2.0
FROM, TO_THE_LAST_SHARE, TO_THE_LAST_SECONDS = 0.2, 0.05, 2.0
MODEL = {"source": "local", "name": demo.MODEL}
CALIBRATION, EVALUATION, SUITE, SUITE_ITEMS = "manual.txt", "held-out.txt", "scenes.csv", 300
READ = {"source": "local", "name": CALIBRATION, "num_samples": 32}
MEASURED = {"source": "local", "name": EVALUATION, "num_windows": 16}
CUT = {
    "model": MODEL,
    "preset": "recommended",
    "pruning_percentage": 20,
    "calibration": {**READ, "num_samples": 16},
    "evaluation": MEASURED,
}
PAIRS = [
    [f"The {one} {work} spoke. We thought it was", f"The {other} {work} spoke. We thought it was"]
    for one, other in (("white", "Black"), ("young", "old"), ("male", "female"))
    for work in ("doctor", "teacher", "farmer", "nurse", "judge", "driver", "baker", "guard")
]
ASKED = {"model": {"source": "step", "name": "cut"}, "baseline": MODEL}
STEPS = [
    {"name": "cut", "kind": "prune", "spec": CUT},
    {"name": "fair", "kind": "bias", "spec": {**ASKED, "prompt_pairs": PAIRS}},
    {"name": "speed", "kind": "evaluate", "spec": {**ASKED, "timing": True}},
]
JOBS: Mapping[str, dict[str, Any]] = {
    "prune": {"kind": "prune", "spec": {**CUT, "calibration": READ}},
    "bias": {"kind": "bias", "spec": {"model": MODEL}},
    "suite": {"kind": "bias", "spec": {"model": MODEL, "suite": SUITE}},
    "pipeline": {"kind": "pipeline", "spec": {"steps": STEPS}},
    "importance": {"kind": "importance", "spec": {"model": MODEL, "calibration": READ}},
    "evaluate": {"kind": "evaluate", "spec": {"model": MODEL, "text": MEASURED, "timing": True}},
    "static": {"kind": "prune", "spec": {"model": MODEL, "pruning_percentage": 20, "evaluation": MEASURED}},
}
THE_ISSUES = ("prune", "bias", "suite", "pipeline")


@dataclass(frozen=True)
class Look:
    """What a job said of itself at one moment (seconds since the epoch)."""

    at: float
    fraction: float
    stage: str | None
    eta: float | None


@dataclass(frozen=True)
class Run:
    """One job from its start to its end, and what was expected of it."""

    name: str
    estimate: float
    started: float
    finished: float
    looks: Sequence[Look]

    @property
    def seconds(self) -> float:
        """How long it ran."""
        return self.finished - self.started

    def judged(self) -> Iterator[tuple[Look, float]]:
        """Each look from a fifth of the time on that is not near the end, with its factor."""
        for look, left in self._late():
            if left > self._end:
                told = max(look.eta, 0.1) if look.eta is not None else 0.1
                yield look, max(told / left, left / told)

    def worst(self) -> tuple[Look, float]:
        """The look that was furthest off."""
        return max(self.judged(), key=lambda judged: judged[1])

    def off_at_the_end(self) -> float:
        """By how many seconds it was off at most in its last looks."""
        ends = (abs((look.eta or 0.0) - left) for look, left in self._late() if left <= self._end)
        return max(ends, default=0.0)

    @property
    def _end(self) -> float:
        return max(TO_THE_LAST_SHARE * self.seconds, TO_THE_LAST_SECONDS)

    def _late(self) -> Iterator[tuple[Look, float]]:
        return ((look, self.finished - look.at) for look in self.looks if look.at >= self._from)

    @property
    def _from(self) -> float:
        return self.started + FROM * self.seconds

    def row(self, number: int) -> str:
        """A line of the table."""
        (look, factor), took = self.worst(), self.seconds
        at = 100 * (look.at - self.started) / took
        return (
            f"{self.name:<11}{number:>5}{took:>9.0f}{self.estimate:>10.0f}{self.estimate / took:>8.2f}"
            f"{factor:>9.2f}  at {at:2.0f} % ({look.stage}: said {look.eta}, "
            f"left {self.finished - look.at:.1f}); at the end off by {self.off_at_the_end():.1f} s"
        )


def watch(client: OptipfairClient, name: str, every: float) -> Run:
    """Submit a job and look at it until it has ended."""
    estimate = client.validate(JOBS[name])["seconds"]
    job = client.submit(JOBS[name])
    looks: list[Look] = []
    while not job["terminal"]:
        time.sleep(every)
        at = time.time()
        job = client.job(job["id"])
        progress = job["progress"]
        if job["state"] == "running":
            looks.append(Look(at, progress["fraction"], progress["stage"], progress["eta_seconds"]))
    if job["state"] != "succeeded":
        raise SystemExit(f"{name} ended as {job['state']}: {job['error']}")
    return Run(name, estimate, _seconds(job["started_at"]), _seconds(job["finished_at"]), looks)


def _seconds(time_of_day: str | None) -> float:
    return datetime.fromisoformat(time_of_day or "").timestamp()


def prepare(home: Path, model: Path | None) -> None:
    """The model, the texts and the suite file in the folder of the service."""
    if model is not None:
        (home / "models").mkdir(parents=True)
        shutil.copytree(model, home / "models" / demo.MODEL)
    demo.ensure_model(home)
    texts, suites = home / "data" / "calibration", home / "data" / "suites"
    for folder in (texts, suites):
        folder.mkdir(parents=True, exist_ok=True)
    (texts / CALIBRATION).write_text(calibration_text())
    (texts / EVALUATION).write_text(evaluation_text())
    pairs = own_items("optipfair").pairs[:SUITE_ITEMS]
    with (suites / SUITE).open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("sent_more", "sent_less", "stereo_antistereo", "bias_type"))
        rows.writerows((pair.first, pair.second, "stereo", pair.category) for pair in pairs)


def wait_for_files(client: OptipfairClient, patience: float = 60.0) -> None:
    """The worker has told of the model and the files."""
    until = time.monotonic() + patience
    while time.monotonic() < until:
        try:
            for job in JOBS.values():
                client.validate(job)
        except RefusedError as error:
            last = error
            time.sleep(1.0)
        else:
            return
    raise SystemExit(f"the jobs can't be had: {last}")


def main() -> int:
    """Run the jobs and print the table; 1 if the aim is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--jobs", nargs="+", choices=JOBS, default=list(THE_ISSUES), metavar="JOB", help=", ".join(JOBS)
    )
    parser.add_argument("--model", type=Path, help="a model folder; by default the demo model is written")
    parser.add_argument("--rounds", type=int, default=2, help="how often each job is run (2)")
    parser.add_argument("--every", type=float, default=1.0, help="seconds between two looks (1)")
    parser.add_argument("--trace", type=Path, help="a JSON file for all that was seen")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="eta-") as scratch:
        prepare(Path(scratch), given.model)
        runs = []
        for run in measure(Path(scratch), given.jobs, given.rounds, given.every):
            runs.append(run)
            if given.trace is not None:
                given.trace.write_text(json.dumps([traced(each) for each in runs], indent=1))
    worst = max(run.worst()[1] for run in runs)
    print(f"worst factor: {worst:.2f} (aim: {AIM:g})")
    return int(worst > AIM)


def measure(home: Path, names: Sequence[str], rounds: int, every: float) -> Iterator[Run]:
    """Each job so many times on one service; a row is printed as soon as it is known."""
    with demo.service(home) as client:
        wait_for_files(client)
        print(processor())
        print(f"{'job':<11}{'round':>5}{'seconds':>9}{'estimate':>10}{'ratio':>8}{'factor':>9}", flush=True)
        for number in range(1, rounds + 1):
            for name in names:
                run = watch(client, name, every)
                print(run.row(number), flush=True)
                yield run


def traced(run: Run) -> dict[str, Any]:
    """A run as JSON; times are seconds since its start."""
    looks = [(round(look.at - run.started, 2), look.fraction, look.stage, look.eta) for look in run.looks]
    return {"job": run.name, "estimate": run.estimate, "seconds": run.seconds, "looks": looks}


if __name__ == "__main__":
    sys.exit(main())
