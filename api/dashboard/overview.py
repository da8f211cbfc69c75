"""What the service has: workers, queues, room on disk, loops, versions; models, texts and uploads."""

from __future__ import annotations

import platform
import time
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from api.auth import Principal
from api.context import Services
from api.dashboard.listing import job_head
from api.dashboard.words import ago, span
from api.readiness import check_all, free_bytes
from jobs.rows import Worker
from jobs.times import rfc3339
from jobs.uploads.rows import Upload

_PACKAGES = ("fastapi", "sqlalchemy", "celery", "pydantic")


def system(services: Services, principal: Principal) -> dict[str, Any]:
    """The state of the service as this key may see it."""
    repository, tenant = services.repository, principal.sees
    now = repository.now()
    workers = repository.live_workers()
    lengths, ages = repository.queue_lengths(tenant), repository.queue_age_seconds(tenant)
    queues = sorted({queue for worker in workers for queue in worker.queues} | set(lengths))
    kept = repository.kept_bytes()
    mine = kept if principal.admin else {principal.tenant: kept.get(principal.tenant, 0)}
    return {
        "checks": check_all(services),
        "workers": [_worker(worker, now) for worker in workers],
        "queues": [
            {
                "name": queue,
                "length": lengths.get(queue, 0),
                "oldest": span(ages[queue]) if queue in ages else "–",
                "workers": sum(queue in worker.queues for worker in workers),
            }
            for queue in queues
        ],
        "free": free_bytes(services) // 2**20 * 2**20,  # to the MiB: else every round would be news
        "kept": sorted(mine.items(), key=lambda item: -item[1]),
        "largest": [(job_head(job, now), size) for job, size in repository.largest_jobs(tenant)],
        "loops": _loops(services),
        "versions": _versions(services),
    }


def _worker(worker: Worker, now: int) -> dict[str, Any]:
    state = "draining" if worker.draining else "stalled" if worker.stalled else "alive"
    return {
        "id": worker.id,
        "state": state,
        "queues": worker.queues,
        "devices": worker.devices,
        "models": len(worker.models),
        "memory": worker.memory_bytes,
        "version": worker.code_version,
        "hub": worker.allow_hub,
        "started": rfc3339(worker.started_at),
        "started_ago": ago(now - worker.started_at),
    }


def _loops(services: Services) -> list[dict[str, Any]]:
    """The background loops of this process: when each last came round, and how often it failed."""
    errors = {
        sample.labels["loop"]: int(sample.value)
        for metric in services.metrics.loop_errors.collect()
        for sample in metric.samples
        if sample.name.endswith("_total")
    }
    now = time.time()
    return [
        {
            "name": name,
            "last": ago(int(1000 * (now - moment))) if now - moment >= 60 else "less than a minute ago",
            "errors": errors.get(name, 0),
        }
        for name, moment in sorted(services.rounds.items())
    ]


def _versions(services: Services) -> list[tuple[str, str]]:
    found = [("Python", platform.python_version()), ("database", services.engine.dialect.name)]
    try:
        found.insert(0, ("service", version("optipfair-service")))
    except PackageNotFoundError:
        found.insert(0, ("service", "not installed as a package"))
    return found + [(name, version(name)) for name in _PACKAGES]


def upload_line(upload: Upload, now: int) -> dict[str, Any]:
    """An upload with how far it has come."""
    size, here = sum(file.size for file in upload.files), sum(file.offset for file in upload.files)
    return {
        "id": upload.id,
        "tenant": upload.tenant,
        "kind": upload.kind,
        "name": upload.name,
        "complete": upload.complete,
        "size": size,
        "percent": 100 if not size else int(100 * here / size),
        "files": len(upload.files),
        "expires_at": rfc3339(upload.expires_at),
        "created_at": rfc3339(upload.created_at),
        "created_ago": ago(now - upload.created_at),
    }
