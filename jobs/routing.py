"""Which of several workers on one queue a job should wait for, when they do not all have what it needs."""

from __future__ import annotations

from typing import Protocol

from pydantic import ValidationError

from jobs.admission import has_device, needs
from jobs.errors import NotFoundError
from jobs.rows import Job, Worker
from jobs.specs import parse_spec
from jobs.states import State


class Books(Protocol):
    """What routing asks the repository."""

    def live_workers(self) -> list[Worker]:
        """The workers that are alive."""
        ...

    def get_job(self, job_id: str, tenant: str | None = None) -> Job:
        """A job."""
        ...


def is_better_elsewhere(books: Books, job_id: str, worker_id: str) -> bool:
    """Whether this worker lacks a model, a file or the device that another live one on the queue has.

    Ask before the claim, and `Repository.decline` the job if so. If nobody suits (a model was removed
    after admission), the answer is no: the attempt then fails with the error that says what is missing.
    """
    try:
        job = books.get_job(job_id)
    except NotFoundError:
        return False
    if job.state is not State.QUEUED:
        return False
    serving = [worker for worker in books.live_workers() if job.queue in worker.queues]
    mine = [worker for worker in serving if worker.id == worker_id]
    return bool(mine) and not _suits(mine[0], job) and any(_suits(worker, job) for worker in serving)


def _suits(worker: Worker, job: Job) -> bool:
    try:
        spec = parse_spec(job.kind, job.spec)
    except ValidationError:  # stored before a rule that would refuse it now: the attempt says what is wrong
        return True
    return has_device(worker, job.queue) and all(
        need.met_by(worker) for need in needs(spec, ("spec",), [worker])
    )
