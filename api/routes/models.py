"""What a job can name: models, texts to calibrate and measure on, suites."""

from __future__ import annotations

from fastapi import APIRouter

from api import models
from api.auth import Reader
from api.context import WithServices
from api.views import error_view
from jobs.admission.gates import suite_facts
from jobs.rows import LocalModel, Worker
from jobs.times import rfc3339
from optipfair_engine.options.suites import CATALOGUE, SuiteEntry

router = APIRouter(prefix="/v1", tags=["models"])


@router.get("/models", response_model=models.ModelList)
def list_models(_principal: Reader, services: WithServices) -> models.ModelList:
    """The local models of the workers, as they last reported them, and whether hub ids are allowed.

    Workers are those that live, and those of sleeping queues, which are started on demand.
    """
    workers = services.repository.known_workers()
    found: dict[str, list[tuple[LocalModel, Worker]]] = {}
    for worker in workers:
        for model in worker.models:
            found.setdefault(model.name, []).append((model, worker))
    hub = any(worker.allow_hub for worker in workers)
    return models.ModelList(items=[_entry(found[name]) for name in sorted(found)], hub=hub)


@router.get("/calibrations", response_model=models.CalibrationList)
def list_calibrations(_principal: Reader, services: WithServices) -> models.CalibrationList:
    """The texts in the live workers' calibration folders; a file just copied is seen within seconds."""
    found = _files(services.repository.known_workers(), "calibration")
    return models.CalibrationList(
        items=[models.CalibrationFile(name=name, queues=_queues(found[name])) for name in sorted(found)]
    )


@router.get("/suites", response_model=models.SuiteList)
def list_suites(_principal: Reader, services: WithServices) -> models.SuiteList:
    """The suites that jobs can name, and the files in the live workers' suites folders."""
    workers = services.repository.known_workers()
    found, here = _files(workers, "suites"), _files(workers, "catalogue")
    files = [_suite(name, found[name]) for name in sorted(found)]
    named = [_catalogued(entry, here.get(entry.name, [])) for entry in CATALOGUE]
    return models.SuiteList(items=[*files, *named])


def _files(workers: list[Worker], folder: str) -> dict[str, list[Worker]]:
    """The workers that have each file of a folder, by its name."""
    found: dict[str, list[Worker]] = {}
    for worker in workers:
        for name in worker.files.get(folder, ()):
            found.setdefault(name, []).append(worker)
    return found


def _suite(name: str, workers: list[Worker]) -> models.SuiteFile:
    facts = suite_facts(workers).get(name, {})
    return models.SuiteFile(
        name=name, kind=facts.get("kind"), items=facts.get("items"), queues=_queues(workers)
    )


def _catalogued(entry: SuiteEntry, workers: list[Worker]) -> models.CatalogueSuite:
    told = {name: getattr(entry, name) for name in models.CatalogueSuite.model_fields if hasattr(entry, name)}
    told["files"] = [
        models.PublishedFile(name=file.name, url=file.url, sha256=file.sha256, size=file.size)
        for file in entry.files
    ]
    state = "here" if workers or not entry.files else "missing"
    return models.CatalogueSuite(**told, state=state, queues=_queues(workers))


def _queues(workers: list[Worker]) -> list[str]:
    return sorted({queue for worker in workers for queue in worker.queues})


def _last_seen(workers: list[Worker]) -> str | None:
    """When the last of these workers was alive; None while one is."""
    if any(not worker.asleep for worker in workers):
        return None
    return rfc3339(max(worker.seen_at for worker in workers))


def _entry(seen: list[tuple[LocalModel, Worker]]) -> models.ModelEntry:
    """The model as the first worker that can use it sees it; with its problem only if none can."""
    usable = [pair for pair in seen if pair[0].problem is None] or seen
    model = usable[0][0]
    return models.ModelEntry(
        name=model.name,
        revision=model.revision,
        facts=model.facts,
        queues=_queues([worker for _, worker in usable]),
        last_seen=_last_seen([worker for _, worker in usable]),
        error=error_view(model.problem),
    )
