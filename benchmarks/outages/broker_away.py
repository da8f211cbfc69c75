"""Does a worker take the next job after its broker was away when a job ended? Repeated at random offsets.

Each round: a job runs, `serve` is stopped (it would start the broker again), the broker is killed at a random
moment of the job or a little after it, and `serve` goes on after a random while. A fresh job is posted; the
time until a worker takes it counts from when the broker answers again, because `serve` waits up to 15 s with
restarting a broker that keeps ending. Celery's waits between tries to connect (2 s, 4 s, 6 s …) are in it.

    python -m benchmarks.outages.broker_away [--rounds 200] [--backend sqlite|postgres] [--seed 0]
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from jobs.addresses import socket_path
from service.broker import answers
from tests import servers
from tests.service.harness import Service, running, wait_for
from tests.tiny import write_tiny_llama

HOLD_SECONDS = 1.0
#: The broker goes at such a part of an undisturbed job's time: from its beginning to a little after its end.
GOES_AT = (0.0, 1.2)
#: It stays away for so long after the job has ended.
STAYS_AWAY = (0.0, 3.0)
#: A fresh job that no worker has taken by then is not waited for any longer.
LIMIT_SECONDS = 60.0


@dataclass(frozen=True)
class Round:
    """What one outage led to."""

    goes_after: float
    stays_away: float
    failed_acks: int
    seconds: float | None
    """Until the next job was taken; None if it was not."""

    def line(self, number: int) -> str:
        """One line of the report."""
        taken = "NOT TAKEN" if self.seconds is None else f"taken after {self.seconds:.2f} s"
        met = "the acknowledgement failed" if self.failed_acks else "the acknowledgement went through"
        away = f"gone {self.goes_after:.2f} s into the job, back {self.stays_away:.2f} s after its end"
        return f"{number:4d}: {away}, {met}: next job {taken}"


def play(service: Service, dice: random.Random, length: float) -> Round:
    """One outage at a job's end, and the next job."""
    goes_after, stays_away = length * dice.uniform(*GOES_AT), dice.uniform(*STAYS_AWAY)
    before = failed_acks(service)
    job_id = start_job(service)
    broker = service.pid_of("broker")
    os.kill(service.process.pid, signal.SIGSTOP)
    try:
        time.sleep(goes_after)
        os.kill(broker, signal.SIGKILL)
        service.wait_state(job_id, "succeeded")
        time.sleep(stays_away)
    finally:
        os.kill(service.process.pid, signal.SIGCONT)
    seconds = time_to_next_job(service)
    return Round(goes_after, stays_away, failed_acks(service) - before, seconds)


def start_job(service: Service) -> str:
    """A job that runs."""
    job_id = service.post_job("analyze", labels={"test.engine": f"hold:{HOLD_SECONDS:g}"})
    service.wait_state(job_id, "running", "succeeded")
    return job_id


def undisturbed(service: Service) -> float:
    """How long such a job runs on this machine, in seconds; the second one, because the first warms up."""
    service.wait_end(start_job(service))
    job_id, began = start_job(service), time.monotonic()
    service.wait_end(job_id)
    return time.monotonic() - began


def failed_acks(service: Service) -> int:
    """How often the worker could not say that it was done with a message."""
    return (service.data_dir / "logs" / "worker.log").read_text().count("Couldn't ack")


def time_to_next_job(service: Service) -> float | None:
    """Seconds from the broker's answer until a fresh job is taken; None if it never is. Waits for its end."""
    fresh = service.post_job("analyze")
    socket = socket_path(service.data_dir)
    wait_for(lambda: answers(socket), "the broker to answer")
    back = time.monotonic()
    with suppress(AssertionError):
        service.wait_state(fresh, "running", "succeeded", seconds=LIMIT_SECONDS)
        seconds = time.monotonic() - back
        service.wait_end(fresh)
        return seconds
    return None


def run(rounds: int, backend: str, seed: int) -> list[Round]:
    """Play all rounds on one service, printing each; ends at the first job that is not taken."""
    dice = random.Random(seed)
    played: list[Round] = []
    with ExitStack() as stack:
        data_dir = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ofaway-"))) / "data"
        write_tiny_llama(data_dir / "models" / "tiny")
        where = {}
        if backend == "postgres":
            where["OPTIPFAIR_DATABASE_URL"] = stack.enter_context(servers.postgres_url())
        service = stack.enter_context(running(data_dir, **where))
        length = undisturbed(service)
        while len(played) < rounds:
            wait_for(lambda: broker_runs(service), "the broker to be back")
            played.append(play(service, dice, length))
            print(played[-1].line(len(played)), flush=True)
            if played[-1].seconds is None:
                break
    return played


def broker_runs(service: Service) -> bool:
    """Whether `serve` has started it again."""
    with suppress(AssertionError):
        return service.pid_of("broker") > 0
    return False


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the rounds, the median and the slowest; 1 if a job was not taken."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--backend", choices=["sqlite", "postgres"], default="sqlite")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args(arguments)
    if chosen.rounds < 1:
        parser.error("--rounds is at least 1")
    played = run(chosen.rounds, chosen.backend, chosen.seed)
    taken = [each.seconds for each in played if each.seconds is not None]
    failed = sum(each.failed_acks > 0 for each in played)
    print(
        f"{chosen.backend}: {len(taken)} of {len(played)} next jobs taken; {failed} failed acknowledgements"
    )
    if taken:
        median, slowest = statistics.median(taken), max(taken)
        print(f"seconds until the next job was taken: median {median:.2f}, slowest {slowest:.2f}")
    return 0 if len(taken) == chosen.rounds else 1


if __name__ == "__main__":
    sys.exit(main())
