"""The state of the service, for the system page and as JSON: workers, queues, room, loops, versions."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

from pydantic import BaseModel, Field

from api.auth import Principal
from api.context import Services
from api.dashboard.listing import subject
from api.readiness import check_all, free_bytes
from jobs.queue import QUEUES
from jobs.rows import Worker
from jobs.times import rfc3339

_PACKAGES = ("fastapi", "sqlalchemy", "celery", "pydantic")
State = Literal["alive", "draining", "stalled"]


class WorkerState(BaseModel):
    """A live worker."""

    id: str
    state: State = Field(
        description="draining: it takes no more jobs; stalled: it takes none that wait for it"
    )
    queues: list[str]
    devices: list[str]
    models: int
    memory_bytes: int | None = Field(description="what one job may use there")
    code_version: str
    allow_hub: bool
    started_at: str


class QueueState(BaseModel):
    """A queue, also one in which nothing waits and that no live worker serves."""

    name: str
    length: int = Field(description="jobs that wait; those that a worker has taken don't count")
    oldest_seconds: float | None = Field(description="how long the oldest has waited")
    workers: int = Field(description="live workers that serve it")


class LoopState(BaseModel):
    """A background loop of the API process that answers."""

    name: str
    last_round_at: str
    errors: int = Field(description="rounds that failed since the process started")


class LargeJob(BaseModel):
    """A job whose files take much room."""

    job_id: str
    kind: str
    subject: str = Field(description="its model, or its steps")
    bytes: int


class System(BaseModel):
    """The state of the service, as far as the key may see it."""

    checks: dict[str, str] = Field(description="as in /readyz")
    workers: list[WorkerState]
    queues: list[QueueState]
    free_bytes: int = Field(description="of the fullest disk of this API process")
    kept_bytes: dict[str, int] = Field(description="what kept files take, by tenant")
    largest: list[LargeJob] = Field(description="jobs whose files take most room")
    loops: list[LoopState]
    versions: dict[str, str]


def system_state(services: Services, principal: Principal) -> System:
    """What there is now; an admin sees all tenants' jobs and files, others their own."""
    repository, tenant = services.repository, principal.sees
    workers = repository.live_workers()
    kept = repository.kept_bytes()
    mine = kept if principal.admin else {principal.tenant: kept.get(principal.tenant, 0)}
    return System(
        checks=check_all(services),
        workers=[_worker(worker) for worker in workers],
        queues=_queues(services, workers, tenant),
        free_bytes=free_bytes(services),
        kept_bytes=dict(sorted(mine.items(), key=lambda item: -item[1])),
        largest=[
            LargeJob(job_id=job.id, kind=job.kind, subject=subject(job.spec), bytes=size)
            for job, size in repository.largest_jobs(tenant)
        ],
        loops=_loops(services),
        versions=_versions(services),
    )


def _worker(worker: Worker) -> WorkerState:
    return WorkerState(
        id=worker.id,
        state="draining" if worker.draining else "stalled" if worker.stalled else "alive",
        queues=list(worker.queues),
        devices=list(worker.devices),
        models=len(worker.models),
        memory_bytes=worker.memory_bytes,
        code_version=worker.code_version,
        allow_hub=worker.allow_hub,
        started_at=rfc3339(worker.started_at),
    )


def _queues(services: Services, workers: list[Worker], tenant: str | None) -> list[QueueState]:
    lengths = services.repository.queue_lengths(tenant)
    ages = services.repository.queue_age_seconds(tenant)
    served = {queue for worker in workers for queue in worker.queues}
    return [
        QueueState(
            name=queue,
            length=lengths.get(queue, 0),
            oldest_seconds=ages.get(queue),
            workers=sum(queue in worker.queues for worker in workers),
        )
        for queue in sorted({*QUEUES, *served, *lengths})
    ]


def _loops(services: Services) -> list[LoopState]:
    """When each loop last came round, and how often it failed."""
    errors = {
        sample.labels["loop"]: int(sample.value)
        for metric in services.metrics.loop_errors.collect()
        for sample in metric.samples
        if sample.name.endswith("_total")
    }
    return [
        LoopState(name=name, last_round_at=rfc3339(int(1000 * moment)), errors=errors.get(name, 0))
        for name, moment in sorted(services.rounds.items())
    ]


def _versions(services: Services) -> dict[str, str]:
    try:
        service = version("optipfair-service")
    except PackageNotFoundError:
        service = "not installed as a package"
    found = {
        "service": service,
        "Python": platform.python_version(),
        "database": services.engine.dialect.name,
    }
    return found | {name: version(name) for name in _PACKAGES}
