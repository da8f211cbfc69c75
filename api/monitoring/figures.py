"""Counters and histograms of all API processes together, and what this machine and the workers have.

What comes from the database is the same in every API process: take `max by`, never `sum`, over instances.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)

from api.context import Services
from api.readiness import free_bytes
from jobs.repository.whole.totals import BEYOND, BOUNDS, Total

#: Adding up all files takes longer than a scrape should: that often it is done.
_BYTES_SECONDS = 60.0


def figures(services: Services, tenant: str | None) -> Iterator[Metric]:
    """Everything for one tenant, or for all: workers, disk and build are everybody's."""
    yield from of_totals(services.repository.totals(tenant))
    yield _artifact_bytes(services, tenant)
    yield from _workers(services)
    if tenant is not None:
        return
    disk = GaugeMetricFamily("optipfair_disk_free_bytes", "Free bytes of this process's fullest disk")
    disk.add_metric((), free_bytes(services))
    yield disk
    build = InfoMetricFamily("optipfair_build", "What is running")
    build.add_metric((), {"version": metadata.version("optipfair-service")})
    yield build


def of_totals(totals: Sequence[Total]) -> Iterator[Metric]:
    """What has begun and ended since this was first counted, as counters and histograms."""
    yield _counter(
        "optipfair_jobs_ended",
        "Times that a job ended, by its end",
        ("kind", "state"),
        totals,
        lambda total: (total.kind, total.word.split()[0]) if total.subject == "job" else None,
    )
    yield _counter(
        "optipfair_verdicts",
        "Verdicts of jobs that succeeded",
        ("kind", "verdict"),
        totals,
        lambda total: (total.kind, total.word.split()[1]) if _is_judged(total) else None,
    )
    yield _counter(
        "optipfair_attempts_ended",
        "Attempts that ended, by outcome: lost and preempted ones are tried again",
        ("kind", "outcome"),
        totals,
        lambda total: (total.kind, total.word) if total.subject == "attempt" else None,
    )
    yield _counter(
        "optipfair_webhooks",
        "Webhook messages: delivered, failed for good, or tried in vain and to be tried again",
        ("outcome",),
        totals,
        lambda total: (total.word,) if total.subject == "webhook" else None,
    )
    for name, subject, help_text, labels in (
        ("queue_wait", "wait", "Seconds that jobs waited before an attempt began", ("kind", "queue")),
        ("run", "attempt", "Seconds that attempts took", ("kind", "outcome")),
    ):
        mine = [total for total in totals if total.subject == subject]
        yield _histogram(f"optipfair_{name}_seconds", help_text, labels, mine)


def _is_judged(total: Total) -> bool:
    return total.subject == "job" and total.word.startswith("succeeded ")


def _counter(
    name: str,
    help_text: str,
    labels: Sequence[str],
    totals: Sequence[Total],
    words_of: Callable[[Total], tuple[str, ...] | None],
) -> Metric:
    sums = Counter[tuple[str, ...]]()
    for total in totals:
        if (words := words_of(total)) is not None:
            sums[words] += total.number
    family = CounterMetricFamily(name, help_text, labels=labels)
    for words, number in sorted(sums.items()):
        family.add_metric(words, number)
    return family


def _histogram(name: str, help_text: str, labels: Sequence[str], totals: Sequence[Total]) -> Metric:
    family = HistogramMetricFamily(name, help_text, labels=labels)
    for words in sorted({(total.kind, total.word) for total in totals}):
        mine = [total for total in totals if (total.kind, total.word) == words]
        numbers = Counter[int]()
        for total in mine:
            numbers[total.bound] += total.number
        family.add_metric(words, _cumulative(numbers), sum(total.seconds for total in mine))
    return family


def _cumulative(numbers: Mapping[int, int]) -> list[tuple[str, float]]:
    """The buckets as Prometheus has them: each holds what those below it do."""
    buckets, reached = [], 0
    for bound in BOUNDS:
        reached += numbers.get(bound, 0)
        buckets.append((str(float(bound)), float(reached)))
    return [*buckets, ("+Inf", float(reached + numbers.get(BEYOND, 0)))]


def _artifact_bytes(services: Services, tenant: str | None) -> Metric:
    family = GaugeMetricFamily(
        "optipfair_artifact_bytes", "What the kept files of a tenant's jobs take", labels=("tenant",)
    )
    for name, size in sorted(_kept(services).items()):
        if tenant in (None, name):
            family.add_metric((name,), size)
    return family


def _kept(services: Services) -> dict[str, int]:
    """What each tenant's files take, as of at most a minute ago."""
    held, now = services.kept_bytes, time.monotonic()
    if not held or now - held[-1][0] > _BYTES_SECONDS:
        held[:] = [(now, services.repository.kept_bytes())]
    return held[-1][1]


def _workers(services: Services) -> Iterator[Metric]:
    up = GaugeMetricFamily("optipfair_worker_up", "Live workers", labels=("worker", "draining"))
    busy = GaugeMetricFamily("optipfair_worker_busy", "Whether a worker is at a job", labels=("worker",))
    memory = GaugeMetricFamily(
        "optipfair_worker_memory_bytes", "What one job may use of a worker's memory", labels=("worker",)
    )
    at_work = services.repository.busy_workers()
    for worker in services.repository.live_workers():
        up.add_metric((worker.id, str(worker.draining).lower()), 1)
        busy.add_metric((worker.id,), float(worker.id in at_work))
        if worker.memory_bytes is not None:
            memory.add_metric((worker.id,), worker.memory_bytes)
    yield from (up, busy, memory)
