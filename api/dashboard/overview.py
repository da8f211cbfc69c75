"""What the service has: workers, queues, room on disk, loops, versions; models, texts and uploads."""

from __future__ import annotations

from typing import Any

from api.auth import Principal
from api.context import Services
from api.dashboard.words import ago, span
from api.monitoring.system import LoopState, WorkerState, system_state
from jobs.times import from_rfc3339, rfc3339
from jobs.uploads.rows import Upload


def system(services: Services, principal: Principal) -> dict[str, Any]:
    """The state of the service as this key may see it, in the words of the page."""
    state, now = system_state(services, principal), services.repository.now()
    return {
        "checks": state.checks,
        "workers": [_worker(worker, now) for worker in state.workers],
        "queues": [
            {
                **queue.model_dump(),
                "oldest": "–" if queue.oldest_seconds is None else span(queue.oldest_seconds),
            }
            for queue in state.queues
        ],
        "free": state.free_bytes // 2**20 * 2**20,  # to the MiB: else every round would be news
        "kept": list(state.kept_bytes.items()),
        "largest": [job.model_dump() for job in state.largest],
        "loops": [_loop(loop, now) for loop in state.loops],
        "versions": list(state.versions.items()),
    }


def _worker(worker: WorkerState, now: int) -> dict[str, Any]:
    return {**worker.model_dump(), "started_ago": ago(now - from_rfc3339(worker.started_at))}


def _loop(loop: LoopState, now: int) -> dict[str, Any]:
    past = now - from_rfc3339(loop.last_round_at)
    return {"name": loop.name, "last": ago(past) if past >= 60_000 else "less than a minute ago",
            "errors": loop.errors}  # fmt: skip


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
