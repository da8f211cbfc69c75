"""The files of one attempt: a stage folder that the engine fills, and a scratch folder for its log."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError

from jobs.artifacts import Interrupt, Sealed, remove_if_dead
from jobs.errors import JobsError, StorageFullError
from worker.log import logger
from worker.services import Services

#: How much of a failed engine's output goes into the worker's log.
LOG_TAIL_BYTES = 4000


class Workspace:
    """Makes the folders of an attempt and removes what was not published; use it as a context manager."""

    def __init__(self, services: Services, job_id: str, attempt: int) -> None:
        self._services = services
        self._job, self._attempt = job_id, attempt
        self._scratch = services.attempts_dir / f"{job_id}-{attempt}"
        self.engine_log = self._scratch / "engine.log"
        self.output = Path()

    def __enter__(self) -> Workspace:
        """Nothing is made yet: `prepare` may fail, and what it fails with is the attempt's outcome."""
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the scratch folder and everything of this job that no one has published or holds."""
        self.discard()
        self._remove_dead(*self._earlier(), self._attempt)

    def discard(self) -> None:
        """Remove what this attempt alone writes to and will not publish; what is published stays."""
        shutil.rmtree(self._scratch, ignore_errors=True)
        try:
            self._services.store.discard(self._job, self._attempt)
        except (JobsError, OSError) as error:
            logger.warning("attempt.not_tidied", job_id=self._job, error=type(error).__name__)

    def prepare(self, *, needed_bytes: int) -> None:
        """Check the space and make the folders.

        Raises:
            StorageFullError: less is free than the job may write and the settings keep free.
        """
        self._remove_dead(*self._earlier())
        self._check_space(needed_bytes)
        self._scratch.mkdir(parents=True, exist_ok=True)
        self.output = self._services.store.stage(self._job, self._attempt)
        # An attempt never starts from another's files, not even from its own of before a crash.
        for path in self.output.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _check_space(self, needed_bytes: int) -> None:
        store, kept = self._services.store, self._services.settings.min_free_bytes
        for cache in self._services.caches:
            cache.make_room(_enough_or_in_vain(store.free_bytes, needed_bytes + kept))
        free = store.free_bytes()
        if free < needed_bytes + kept:
            raise StorageFullError(
                f"the job may write {needed_bytes:,} bytes, {free:,} are free, "
                f"and {kept:,} of them are kept free"
            )

    def seal(self, *, finished_at: int, interrupt: Interrupt, steps: Collection[str]) -> Sealed:
        """Hash the staged files and make them durable; `interrupt` may end that by raising.

        `steps` are the names of a pipeline's steps.
        """
        store = self._services.store
        return store.seal(self._job, self._attempt, finished_at=finished_at, interrupt=interrupt, steps=steps)

    def publish(self) -> None:
        """Make the sealed files visible; called inside the completing transaction."""
        self._services.store.publish(self._job, self._attempt)

    def log_tail(self) -> str:
        """The end of the engine's output, for the worker's log."""
        with suppress(OSError):
            return self.engine_log.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace")
        return ""

    def _earlier(self) -> range:
        """The attempts before this one: what a pipeline's finished steps left may lie there."""
        return range(max(1, self._attempt - 20), self._attempt)

    def _remove_dead(self, *attempts: int) -> None:
        # Asked of the database and not of this object's memory: a commit whose answer was lost has published.
        for attempt in attempts:
            try:
                remove_if_dead(self._services.repository, self._services.store, self._job, attempt)
            except (SQLAlchemyError, JobsError, OSError) as error:
                # The purge of the API finds it later.
                reason = type(error).__name__
                logger.warning("attempt.not_tidied", job_id=self._job, attempt=attempt, error=reason)


def _enough_or_in_vain(free_bytes: Callable[[], int], wanted: int) -> Callable[[], bool]:
    """Whether so much is free, or the last removal freed nothing: then the cache lies on another disk."""
    before = -1

    def decided() -> bool:
        nonlocal before
        free = free_bytes()
        helped, before = free > before, free
        return free >= wanted or not helped

    return decided
