"""A worker that takes one job and ends: for machines that are started when a job waits.

It looks for its job in the database, which is the truth; whoever reads the message of the broker later finds
nothing to do.
"""

from __future__ import annotations

import signal
import time
from types import FrameType

from sqlalchemy.exc import SQLAlchemyError

from jobs.errors import JobsError
from worker.attempt.supervisor import run_job
from worker.log import logger
from worker.services import Services

_PAUSE_SECONDS = 0.5


def take_one(services: Services, wait_seconds: float) -> bool:
    """Carry out one job of this worker's queues; False if none came in time, or the worker was to stop."""
    deadline = time.monotonic() + wait_seconds
    declined: set[str] = set()
    while not services.stopping.is_set():
        for job_id in _waiting(services):
            if job_id in declined:
                continue
            with services.activity.working():
                if run_job(services, job_id):
                    return True
            declined.add(job_id)
        if time.monotonic() >= deadline:
            return False
        services.stopping.wait(_PAUSE_SECONDS)
    return False


def stop_on_signals(services: Services) -> None:
    """Let SIGTERM and SIGINT end the worker as a shutdown does: its attempt gets the grace period."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        services.stopping.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)


def _waiting(services: Services) -> list[str]:
    try:
        queues = services.settings.queues
        return [job_id for queue in queues for job_id in services.repository.next_jobs(queue)]
    except (JobsError, SQLAlchemyError):  # it may be starting; the wait goes on
        logger.warning("once.blind", exc_info=True)
        return []
