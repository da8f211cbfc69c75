"""Which models a job can name."""

from __future__ import annotations

from fastapi import APIRouter

from api import models
from api.auth import Reader
from api.context import WithServices
from api.views import error_view
from jobs.rows import Worker

router = APIRouter(prefix="/v1", tags=["models"])


@router.get("/models", response_model=models.ModelList)
def list_models(_principal: Reader, services: WithServices) -> models.ModelList:
    """The local models of the live workers, as they last reported them, and whether hub ids are allowed."""
    workers = services.repository.live_workers()
    entries = {entry.name: entry for worker in reversed(workers) for entry in _entries(worker)}
    for name, entry in entries.items():
        entry.queues = sorted({q for w in workers if any(m.name == name for m in w.models) for q in w.queues})
    hub = any(worker.allow_hub for worker in workers)
    return models.ModelList(items=[entries[name] for name in sorted(entries)], hub=hub)


def _entries(worker: Worker) -> list[models.ModelEntry]:
    return [
        models.ModelEntry(
            name=model.name,
            revision=model.revision,
            facts=model.facts,
            queues=[],
            error=error_view(model.problem),
        )
        for model in worker.models
    ]
