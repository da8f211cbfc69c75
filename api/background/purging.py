"""Removes what nobody needs any more: results and records past their time, and files without an owner."""

from __future__ import annotations

import time

from api.context import Services
from jobs.artifacts import remove_orphans
from jobs.logs import structlog
from jobs.repository.whole.duties import Duty

LEASE_SECONDS = 300.0
#: A process that died over a duty has its turn taken after so long.
AGAIN_SECONDS = 600.0
#: How long one turn at thinning goes on before other background work has its own.
_TURN_SECONDS = 5.0
_log = structlog.get_logger("api.background.purging")


def purge_some(services: Services) -> bool:
    """One batch of each; whether there may be more to do at once."""
    repository = services.repository
    expired = repository.take_expired_artifacts()
    uploaded = repository.take_expired_uploads()
    forgotten = repository.forget_ended_jobs()
    services.store.delete_many([*expired, *uploaded, *forgotten.folders])
    repository.purge_idempotency()
    repository.purge_tokens()
    repository.purge_workers()
    repository.fold_totals()
    return bool(expired or uploaded or forgotten.jobs)


def thin_progress(services: Services) -> bool:
    """Thin the progress of ended jobs, if nobody else is at it; whether the turn ended before the work."""
    repository = services.repository
    duty = repository.take_duty("thin", lease_seconds=LEASE_SECONDS)
    if duty is None:
        return False
    until, position = time.monotonic() + _TURN_SECONDS, duty.position
    while time.monotonic() < until:
        place = repository.thin_progress(position)
        if place is None:
            repository.end_duty(duty, again_in_seconds=AGAIN_SECONDS, position=position)
            return False
        position = place
    repository.end_duty(duty, again_in_seconds=0, position=position)
    return True


def remove_ownerless(services: Services) -> int:
    """Remove stored files that nothing refers to, if nobody else is at it; how many folders went.

    A store is gone through from beginning to end, a part at a time; who takes the duty over goes on where the
    other one stopped.
    """
    duty = services.repository.take_duty("orphans", lease_seconds=LEASE_SECONDS)
    if duty is None:
        return 0
    removed = remove_orphans(
        services.repository,
        services.store,
        grace_seconds=services.settings.orphan_grace_seconds,
        after=duty.position,
        go_on=lambda place: _keep(services, duty, place),
    )
    services.repository.end_duty(duty, again_in_seconds=AGAIN_SECONDS)
    return removed


def _keep(services: Services, duty: Duty, place: str) -> bool:
    kept = services.repository.keep_duty(duty, place, lease_seconds=LEASE_SECONDS)
    if not kept:
        _log.warning("duty_lost", duty=duty.name)
    return kept
