"""Whether a job would run, and the numbers for Prometheus: both asked of the database and the broker."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache

import structlog
from sqlalchemy import Engine

from api.context import Services
from api.observability import Gauge
from jobs.database import reading

_log = structlog.get_logger("api.readiness")


def check_all(services: Services) -> dict[str, str]:
    """Each thing that a job needs: "ok", or a word for what is wrong that tells an attacker nothing."""
    checks: dict[str, Callable[[], str]] = {
        "database": lambda: _passes(services.repository.ping),
        "migrations": lambda: "ok" if _at_head(services.engine) else "not at head",
        "broker": lambda: _passes(services.publisher.ping),
        "worker": lambda: "ok" if services.repository.live_workers() else "no live worker",
    }
    return {name: _run(name, check) for name, check in checks.items()}


def _passes(call: Callable[[], None]) -> str:
    call()
    return "ok"


def _run(name: str, check: Callable[[], str]) -> str:
    try:
        return check()
    except Exception as error:  # whatever a driver raises means the same here: not ready
        _log.warning("not_ready", check=name, error=type(error).__name__)
        return "unavailable"


def _at_head(engine: Engine) -> bool:
    import migrations  # alembic is loaded when readiness is first asked for

    with reading(engine) as connection:
        return migrations.revision(connection) == _head()


@cache
def _head() -> str:
    import migrations

    return migrations.head()


def gauges(services: Services, tenant: str | None) -> Iterator[Gauge]:
    """What the database says of one tenant's jobs, or of all, and of the workers that all share."""
    repository = services.repository
    counted = sorted(repository.count_states(tenant).items())
    yield Gauge("optipfair_jobs", "Jobs by state and kind", ("state", "kind"), counted)
    totals = sorted(repository.attempt_totals(tenant).items())
    ended = [((outcome,), float(count)) for outcome, (count, _) in totals]
    yield Gauge("optipfair_attempts", "Attempts by outcome", ("outcome",), ended)
    took = [((outcome,), seconds) for outcome, (_, seconds) in totals]
    yield Gauge("optipfair_attempt_seconds", "Seconds that attempts took, by outcome", ("outcome",), took)
    ages = sorted((((queue,), age)) for queue, age in repository.queue_age_seconds(tenant).items())
    help_text = "Seconds that the oldest job of a queue has waited"
    yield Gauge("optipfair_queue_age_seconds", help_text, ("queue",), ages)
    workers = repository.live_workers()
    per_queue = {queue: sum(queue in w.queues for w in workers) for w in workers for queue in w.queues}
    samples = sorted(((queue,), float(count)) for queue, count in per_queue.items())
    yield Gauge("optipfair_workers", "Live workers by queue", ("queue",), samples)
    if tenant is not None:
        return
    yield Gauge(
        "optipfair_waiting_requests",
        "Jobs that held requests wait for",
        (),
        [((), services.notifier.watched)],
    )
