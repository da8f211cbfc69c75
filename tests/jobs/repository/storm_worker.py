"""A worker without an engine: claims jobs and ends them in every way there is, dying of SIGKILL too.

Run by test_storm in processes of its own, forked from a server that has imported everything. Whatever it
does wrong on purpose (late, killed, preempted), the repository must keep the truth.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

from sqlalchemy import select

from jobs.artifacts import ArtifactStore, make_store, remove_if_dead
from jobs.database import connect
from jobs.repository import Repository
from jobs.rows import Claim
from jobs.settings import Settings
from jobs.states import State
from jobs.tables import jobs


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Worker:
    def __init__(self, settings: Settings, name: str, seed: int) -> None:
        self.repository = Repository(connect(settings.database_url), settings)
        self.store: ArtifactStore = make_store(settings)
        self.settings, self.name, self.chance = settings, name, random.Random(seed)

    def queued(self) -> list[str]:
        with self.repository.engine.connect() as connection:
            return list(connection.execute(select(jobs.c.id).where(jobs.c.state == "queued")).scalars())

    def run(self) -> None:
        while True:
            waiting = self.queued()
            if not waiting:
                time.sleep(0.02)
                continue
            claim = self.repository.claim(self.chance.choice(waiting), self.name)
            if claim is not None:
                self.work(claim)

    def work(self, claim: Claim) -> None:
        job_id, attempt = claim.job.id, claim.attempt
        fate = self.chance.random()
        if claim.job.labels.get("poison") or fate < 0.08:
            die()
        stage = self.store.stage(job_id, attempt)
        (stage / "result.json").write_text(f'{{"job":"{job_id}","attempt":{attempt}}}')
        self.repository.add_event(job_id, attempt, "progress", {"half": True})
        if fate < 0.16:
            die()
        if fate < 0.24:
            self.repository.release_preempted(job_id, attempt)
        elif fate < 0.30:
            self.repository.mark_lost(job_id, attempt, "engine_killed", "signal 9")
        elif fate < 0.36:
            self.repository.mark_failed(job_id, attempt, "model_bad", "NaN")
        else:
            if fate < 0.55:
                time.sleep(self.settings.lease_seconds * 1.8)  # as if stopped: it comes back too late
            self.complete(job_id, attempt)
        remove_if_dead(self.repository, self.store, job_id, attempt)

    def complete(self, job_id: str, attempt: int) -> None:
        sealed = self.store.seal(job_id, attempt, finished_at=self.repository.now())
        if self.chance.random() < 0.1:
            die()

        def publish() -> None:
            self.store.publish(job_id, attempt)
            if self.chance.random() < 0.1:
                die()  # the files are in place, the transaction is not committed

        state = self.repository.mark_succeeded(
            job_id,
            attempt,
            artifacts=sealed.artifacts,
            archive=sealed.archive,
            metrics={"seconds": 1.0},
            publish=publish,
        )
        if state is None:
            print("stale", flush=True)
        elif state is State.SUCCEEDED:
            print("succeeded", flush=True)


def main(settings: str, log: str, seed: int) -> None:
    """The process: its lines ("stale", "succeeded") go to the end of the file `log`."""
    sys.stdout = Path(log).open("a")  # noqa: SIM115 - open for the life of the process
    Worker(Settings.model_validate_json(settings), f"w{seed}", seed).run()
