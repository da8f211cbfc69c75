"""An attempt tells how far it is: the engine's reports as events, and the time that is left between them."""

from __future__ import annotations

import time
from collections.abc import Mapping

from sqlalchemy.exc import SQLAlchemyError

from jobs.rows import Claim
from worker.attempt.amounts import Amounts
from worker.attempt.costs import StageCosts
from worker.attempt.log import AttemptLog
from worker.attempt.progress import ProgressTracker
from worker.attempt.stages import STORE, stages_of
from worker.log import logger
from worker.services import Services

#: How often the time that is left is said anew while nothing is reported.
_ETA_SECONDS = 2.0


class Telling:
    """Writes the progress of one attempt; every writer says whether the attempt still holds its job."""

    def __init__(self, services: Services, claim: Claim, said: AttemptLog) -> None:
        job = claim.job
        self._repository, self._job_id, self._attempt = services.repository, job.id, claim.attempt
        self._costs = StageCosts.of(services.settings.work_dir)
        stages = stages_of(job.kind, job.spec, Amounts.of(services, job.spec))
        self._tracker = ProgressTracker(stages, self._costs)
        self._said, self._told_at = said, time.monotonic()

    def report(self, stage: str, done: int, total: int, text: str) -> bool:
        """Take one report, and write it unless it may be left out."""
        progress = self._tracker.update(stage, done, total, text)
        if progress is None:
            return True
        self._said.say(f"{stage} {done}/{total}: {text}")
        self._told_at = time.monotonic()
        data: Mapping[str, object] = {
            **{"stage": stage, "done": done, "total": total, "message": text},
            "fraction": progress.fraction,
        }
        try:
            return self._repository.add_event(
                self._job_id, self._attempt, "progress", dict(data), progress=progress
            )
        except SQLAlchemyError:
            logger.warning("progress.not_written", job_id=self._job_id, exc_info=True)
            return True

    def tell_eta(self) -> bool:
        """While nothing is reported, say now and then what is left: it was said for an earlier moment."""
        if time.monotonic() - self._told_at < _ETA_SECONDS:
            return True
        self._told_at, eta = time.monotonic(), self._tracker.eta()
        if eta is None:
            return True
        try:
            return self._repository.tell_eta(self._job_id, self._attempt, eta)
        except SQLAlchemyError:
            logger.warning("eta.not_written", job_id=self._job_id, exc_info=True)
            return True

    def storing(self) -> None:
        """The engine is done, and its files are hashed and stored."""
        self.report(STORE, 0, 1, "hashing and storing the files")

    def stored(self) -> None:
        """The job has succeeded: what its stages took is kept for the next one."""
        self._tracker.update(STORE, 1, 1, "")
        self._costs.learn(self._tracker.spent())
