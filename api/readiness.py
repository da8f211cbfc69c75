"""Whether a job would run, and the numbers for Prometheus: both asked of the database and the broker."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from api.context import Services
from api.observability import Gauge
from jobs.database import is_disk_full, reading
from jobs.logs import structlog
from jobs.queue import SHORT

_log = structlog.get_logger("api.readiness")


#: Below this, SQLite can't write and logs are cut off, whatever `min_free_bytes` says.
LEAST_FREE_BYTES = 1024 * 1024
OK = "ok"
_UNAVAILABLE = "unavailable"


def check_all(services: Services) -> dict[str, str]:
    """Each thing that a job needs: "ok", or words for what is wrong that tell an attacker nothing.

    The broker is asked beside the database, and a database that does not answer is not asked again: else
    their time limits would add up to more than a prober waits.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="ready") as threads:
        broker = threads.submit(_run, "broker", lambda: _passes(services.publisher.ping))
        database = _run("database", lambda: _passes(services.repository.ping))
        asked = database == OK
        return {
            "database": database,
            "migrations": _run("migrations", lambda: _at_head(services)) if asked else _UNAVAILABLE,
            "worker": _run("worker", lambda: _workers(services)) if asked else _UNAVAILABLE,
            "disk": _run("disk", lambda: _disk(services)),
            "broker": broker.result(),
        }


def _passes(call: Callable[[], None]) -> str:
    call()
    return OK


def _run(name: str, check: Callable[[], str]) -> str:
    try:
        return check()
    except Exception as error:  # whatever a driver raises means the same here: not ready
        _log.warning("not_ready", check=name, error=type(error).__name__)
        return "full" if is_disk_full(error) else _UNAVAILABLE


def _workers(services: Services) -> str:
    """One that is well is enough; the metrics and `doctor` name the others."""
    workers = services.repository.live_workers()
    if not workers and services.repository.sleeping_workers():
        return OK  # one is started when a job waits
    if not workers:
        return "no live worker"
    served = {queue for worker in workers for queue in worker.queues}
    if served <= {SHORT} < set(services.settings.queues):
        return "no live worker but for short jobs"  # most jobs would be refused
    return "no worker takes jobs" if all(worker.stalled for worker in workers) else OK


def _disk(services: Services) -> str:
    """Whether there is room where this process or its neighbours on this machine write."""
    least = max(services.settings.min_free_bytes, LEAST_FREE_BYTES)
    return OK if free_bytes(services) >= least else "full"


def free_bytes(services: Services) -> int:
    """Free bytes of the fullest disk among those of the data folder, SQLite's file and local artifacts."""
    folders = [services.settings.data_dir]
    if services.engine.dialect.name == "sqlite" and services.engine.url.database:
        folders.append(Path(services.engine.url.database).parent)
    free = [shutil.disk_usage(folder).free for folder in folders if folder.is_dir()]
    return min([services.store.free_bytes(), *free])


def _at_head(services: Services) -> str:
    import migrations  # alembic is loaded when readiness is first asked for

    with reading(services.engine) as connection:
        return OK if migrations.revision(connection) == _head() else "not at head"


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
    lengths = sorted(((queue,), float(size)) for queue, size in repository.queue_lengths(tenant).items())
    yield Gauge("optipfair_queue_length", "Jobs that wait, by queue", ("queue",), lengths)
    ages = sorted((((queue,), age)) for queue, age in repository.queue_age_seconds(tenant).items())
    help_text = "Seconds that the oldest job of a queue has waited"
    yield Gauge("optipfair_queue_age_seconds", help_text, ("queue",), ages)
    workers = repository.live_workers()
    per_queue = {queue: sum(queue in w.queues for w in workers) for w in workers for queue in w.queues}
    samples = sorted(((queue,), float(count)) for queue, count in per_queue.items())
    yield Gauge("optipfair_workers", "Live workers by queue", ("queue",), samples)
    stalled = float(sum(worker.stalled for worker in workers))
    help_text = "Live workers that take no job though jobs wait for them"
    yield Gauge("optipfair_worker_stalled", help_text, (), [((), stalled)])
    if tenant is not None:
        return
    yield Gauge(
        "optipfair_waiting_requests",
        "Jobs that held requests wait for",
        (),
        [((), services.notifier.watched)],
    )
