"""What the chaos run counts, read from the database and the store without the service's help."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from jobs.repository import Repository

MAX_NOTICE_SECONDS = 60.0
MAX_NEXT_JOB_SECONDS = 30.0


@dataclass(frozen=True)
class Plan:
    """How much of everything; the quotas of violence are met before the run may end."""

    jobs: int = 200
    lost_attempts: int = 30
    stale_attempts: int = 10
    once_jobs: int = 3
    end_seconds: float = 240.0

    @classmethod
    def of(cls, jobs: int, end_seconds: float) -> Plan:
        """So many jobs, and as much violence to each as by default."""
        share = jobs / cls.jobs
        quotas = {
            name: max(1, round(share * getattr(cls, name)))
            for name in ("lost_attempts", "stale_attempts", "once_jobs")
        }
        return cls(jobs, **quotas, end_seconds=end_seconds)


@dataclass
class Tally:
    """What was accepted, and what was done to it."""

    accepted: dict[str, str] = field(default_factory=dict)  # id → plain, user_error, poison, …
    actions: Counter[str] = field(default_factory=Counter)
    killed: list[tuple[str, int, float]] = field(default_factory=list)  # job, attempt, milliseconds


@dataclass
class Report:
    """The counts that decide, and those that say how rough it was."""

    accepted: int
    states: Counter[str]
    lost: int
    made_twice: int
    published_twice: int
    stale_rejected: int
    once_jobs: int
    resumed: int
    orphans: int
    lost_attempts: int
    noticed_seconds: float
    wrong_ends: list[str]
    actions: Counter[str]
    seconds: float
    next_job_seconds: float

    def line(self) -> str:
        """The line that scripts read."""
        return (
            f"accepted={self.accepted} succeeded={self.states['succeeded']} lost={self.lost} "
            f"published_twice={self.published_twice} stale_rejected={self.stale_rejected} "
            f"orphans={self.orphans}"
        )

    def details(self) -> str:
        """The line for people."""
        actions = " ".join(f"{name}={count}" for name, count in sorted(self.actions.items()))
        return (
            f"  failed={self.states['failed']} attempts_lost_while_running={self.lost_attempts} "
            f"dead_worker_noticed_within={self.noticed_seconds:.1f}s "
            f"next_job_after={self.next_job_seconds:.1f}s jobs_of_once_workers={self.once_jobs} "
            f"streamed_attempts_resumed={self.resumed} {actions} in {self.seconds:.0f} s"
        )

    def failures(self, plan: Plan) -> list[str]:
        """Why the run failed; empty if it passed."""
        checks = [
            (self.accepted >= plan.jobs, f"only {self.accepted} of {plan.jobs} jobs were accepted"),
            (self.made_twice == 0, f"{self.made_twice} requests made two jobs"),
            (self.lost == 0, f"{self.lost} accepted jobs were lost"),
            (self.published_twice == 0, f"{self.published_twice} jobs were published twice or damaged"),
            (self.orphans == 0, f"{self.orphans} orphan files"),
            (not self.wrong_ends, f"wrong ends: {self.wrong_ends[:5]}"),
            (self.noticed_seconds <= MAX_NOTICE_SECONDS, f"noticed only after {self.noticed_seconds:.0f} s"),
            (
                self.next_job_seconds <= MAX_NEXT_JOB_SECONDS,
                f"when all was calm the next job ended only after {self.next_job_seconds:.0f} s",
            ),
            (self.lost_attempts >= plan.lost_attempts, f"too gentle: {self.lost_attempts} attempts lost"),
            (self.stale_rejected >= plan.stale_attempts, f"too gentle: {self.stale_rejected} stale"),
            (self.once_jobs >= plan.once_jobs, f"too gentle: {self.once_jobs} jobs of --once workers"),
        ]
        return [reason for well, reason in checks if not well]


class Books:
    """Reads the outcome from the database and the artifact store, without the service's help."""

    def __init__(self, repository: Repository, artifacts: Path, tally: Tally) -> None:
        self._repository, self._artifacts, self._tally = repository, artifacts, tally

    def _rows(self, statement: str) -> Sequence[Any]:
        for _ in range(50):  # the database may be restarting
            try:
                with self._repository.engine.connect() as connection:
                    return connection.execute(text(statement)).all()
            except SQLAlchemyError:
                time.sleep(0.2)
        raise TimeoutError("the database does not answer")

    def open_jobs(self) -> int:
        """Jobs that have not ended."""
        states = "('queued', 'running', 'cancelling')"
        return int(self._rows(f"SELECT count(*) FROM jobs WHERE state IN {states}")[0][0])

    def attempts(self) -> int:
        """Attempts that were started."""
        return int(self._rows("SELECT count(*) FROM attempts")[0][0])

    def held_by(self, pid: int) -> list[tuple[str, int]]:
        """The job and attempt that a worker process holds."""
        held = self._rows(
            f"SELECT id, attempt FROM jobs WHERE state = 'running' AND worker_id LIKE '%-{pid}-%'"
        )
        return [(row[0], row[1]) for row in held]

    def lost_attempts(self) -> int:
        """Attempts lost while running, without those of poison jobs, which ask for it."""
        rows = self._rows("SELECT job_id FROM attempts WHERE outcome = 'lost'")
        return sum(self._tally.accepted.get(row[0]) != "poison" for row in rows)

    def orphans(self) -> list[str]:
        """Folders and files in the store that no artifact row knows."""
        known = {
            f"{row[0]}/{row[1]}"
            for row in self._rows("SELECT storage, name FROM artifacts WHERE name <> '*'")
        }
        root = self._artifacts
        found = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
        empty = {str(path.relative_to(root)) for path in root.glob("*/*") if not any(path.iterdir())}
        return sorted((found - known) | empty)

    def report(self, stale_rejected: int, once_jobs: int, seconds: float, next_job_seconds: float) -> Report:
        """Everything that counts."""
        jobs = {row[0]: row for row in self._rows("SELECT id, state, error_code, attempt FROM jobs")}
        ended = {"succeeded", "failed", "timed_out", "cancelled", "expired"}
        missing = [job for job in self._tally.accepted if job not in jobs or jobs[job][1] not in ended]
        return Report(
            accepted=len(self._tally.accepted),
            states=Counter(row[1] for row in jobs.values()),
            lost=len(missing),
            made_twice=len(jobs.keys() - self._tally.accepted.keys()),
            published_twice=len(self._wrongly_published(jobs)),
            stale_rejected=stale_rejected,
            once_jobs=once_jobs,
            resumed=int(self._rows("SELECT count(*) FROM events WHERE type = 'resumed'")[0][0]),
            orphans=len(self.orphans()),
            lost_attempts=self.lost_attempts(),
            noticed_seconds=self._slowest_notice(),
            wrong_ends=self._wrong_ends(jobs),
            actions=self._tally.actions,
            seconds=seconds,
            next_job_seconds=next_job_seconds,
        )

    def _wrongly_published(self, jobs: dict[str, Any]) -> set[str]:
        """Jobs with two successes, files of another attempt, or bytes that are not what the rows say."""
        successes = Counter(
            row[0] for row in self._rows("SELECT job_id FROM events WHERE type = 'succeeded'")
        )
        wrong = {job for job, count in successes.items() if count != 1 or jobs[job][1] != "succeeded"}
        wrong |= {job for job, row in jobs.items() if row[1] == "succeeded" and successes[job] != 1}
        rows = self._rows("SELECT job_id, name, storage, sha256 FROM artifacts WHERE name <> '*'")
        for job, name, storage, sha256 in rows:
            file = self._artifacts / storage / name
            genuine = storage == f"{job}/{jobs[job][3]}" and file.is_file()
            if not genuine or hashlib.sha256(file.read_bytes()).hexdigest() != sha256:
                wrong.add(job)
        return wrong

    def _wrong_ends(self, jobs: dict[str, Any]) -> list[str]:
        """Jobs that ended as they should not: poison that succeeds, mistakes that are tried again."""
        wrong = []
        for job, what in self._tally.accepted.items():
            _id, state, code, _attempt = jobs.get(job, (job, "missing", None, 0))
            expected = {
                "poison": ("failed", "attempts_exhausted"),
                "user_error": ("failed", "weights_not_finite"),
            }.get(what, ("succeeded", None))
            # A job that was hit in every attempt has exhausted them honestly.
            if (state, code) not in {expected, ("failed", "attempts_exhausted")}:
                wrong.append(f"{what}: {state} {code}")
        return wrong

    def _slowest_notice(self) -> float:
        """The longest time, in seconds, from a worker's death to the loss of its attempt being written."""
        noticed = {
            (row[0], row[1]): row[2]
            for row in self._rows("SELECT job_id, attempt, time FROM events WHERE type IN ('lost', 'failed')")
        }
        times = [
            noticed[job, number] - at for job, number, at in self._tally.killed if (job, number) in noticed
        ]
        return max([0.0, *times]) / 1000
