"""Which of several workers on one queue a job should wait for, when they do not all have what it needs."""

from __future__ import annotations

from collections.abc import Callable

from pydantic import ValidationError

from jobs.admission.checks import cost_of_job, fits, has_device, needs
from jobs.admission.estimating import Cost
from jobs.admission.sources import Books
from jobs.errors import NotFoundError
from jobs.rows import Job, Worker
from jobs.specs import Spec, parse_spec
from jobs.states import State


def is_better_elsewhere(books: Books, job_id: str, worker_id: str) -> bool:
    """Whether this worker lacks a model, a file, the device or the memory that another live one has.

    Ask before the claim, and `Repository.decline` the job if so. If nobody suits (a model was removed
    after admission), the answer is no: the attempt then fails with the error that says what is missing.
    """
    try:
        job = books.get_job(job_id)
    except NotFoundError:
        return False
    if job.state is not State.QUEUED:
        return False
    try:
        spec = parse_spec(job.kind, job.spec)
    except ValidationError:  # stored before a rule that would refuse it now: the attempt says what is wrong
        return False
    serving = [worker for worker in books.live_workers() if job.queue in worker.queues]
    cost_on = cost_of_job(books, job, spec, serving)
    mine = [worker for worker in serving if worker.id == worker_id]
    return (
        bool(mine)
        and not _suits(mine[0], job, spec, cost_on)
        and any(_suits(worker, job, spec, cost_on) for worker in serving)
    )


def _suits(worker: Worker, job: Job, spec: Spec, cost_on: Callable[[int | None], Cost | None]) -> bool:
    wanted = needs(spec, ("spec",), [worker])
    enough = fits(cost_on(worker.memory_bytes), worker.memory_bytes)
    return enough and has_device(worker, job.queue) and all(need.met_by(worker) for need in wanted)
