"""Which models a job can name."""

from __future__ import annotations

from fastapi import APIRouter

from api import models
from api.auth import Reader
from api.context import WithServices
from api.views import error_view
from jobs.rows import LocalModel, Worker

router = APIRouter(prefix="/v1", tags=["models"])


@router.get("/models", response_model=models.ModelList)
def list_models(_principal: Reader, services: WithServices) -> models.ModelList:
    """The local models of the live workers, as they last reported them, and whether hub ids are allowed."""
    workers = services.repository.live_workers()
    found: dict[str, list[tuple[LocalModel, Worker]]] = {}
    for worker in workers:
        for model in worker.models:
            found.setdefault(model.name, []).append((model, worker))
    hub = any(worker.allow_hub for worker in workers)
    return models.ModelList(items=[_entry(found[name]) for name in sorted(found)], hub=hub)


def _entry(seen: list[tuple[LocalModel, Worker]]) -> models.ModelEntry:
    """The model as the first worker that can use it sees it; with its problem only if none can."""
    usable = [pair for pair in seen if pair[0].problem is None] or seen
    model = usable[0][0]
    return models.ModelEntry(
        name=model.name,
        revision=model.revision,
        facts=model.facts,
        queues=sorted({queue for _, worker in usable for queue in worker.queues}),
        error=error_view(model.problem),
    )
