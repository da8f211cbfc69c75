"""Which job a message makes this worker take: the one whose turn it is in the queue, not the one it names."""

from __future__ import annotations

from itertools import chain

from jobs.admission.routing import is_better_elsewhere
from worker.attempt.supervisor import claim_and_run
from worker.log import logger
from worker.services import Services


def run_next(services: Services, queue: str, named: str) -> str | None:
    """Work on the job of this queue whose turn it is; its id, or None if there was none for this worker.

    `named` is the job whose message came. It is the last one to be looked at, for it may stand behind many
    that are better off elsewhere. If all that wait are, the message goes back: each job that waits has one.
    """
    passed = []
    for job_id in chain(services.repository.in_turn(queue), [named]):
        if job_id in passed:
            continue
        if is_better_elsewhere(services.repository, job_id, services.worker_id):
            passed.append(job_id)
        elif claim_and_run(services, job_id, message_of=named):
            return job_id
    if passed:
        job_id = named if named in passed else passed[0]
        services.repository.decline(job_id)
        logger.info("job.declined", job_id=job_id)
    return None
