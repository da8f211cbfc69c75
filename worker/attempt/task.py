"""From a claimed job to the plain JSON task that its engine process gets."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jobs.admission.execution import execution_of
from jobs.artifacts import Interrupt
from jobs.errors import InvalidError, NotFoundError, StorageError
from jobs.rows import Artifact, Claim
from jobs.specs import parse_spec
from optipfair_engine.headers import HeaderError, inspect_model_folder, loaded_bytes, state_bytes
from worker.attempt.publishing import Workspace
from worker.inputs.cache import folder_bytes
from worker.inputs.places import Places
from worker.services import Services


def build_task(
    services: Services,
    claim: Claim,
    workspace: Workspace,
    hooks: Mapping[str, str],
    stack: ExitStack,
    interrupt: Interrupt,
    binding: str,
) -> dict[str, Any]:
    """Everything that the engine's process needs; checkpoints of earlier jobs are fetched here.

    They are fetched here and not there because the artifact store's credentials stay out of that process.
    `interrupt` is called all the while, and ends the fetching by raising. `binding` is what the state of an
    earlier attempt must be bound to.
    """
    settings, job = services.settings, claim.job
    fetched = {
        job_id: str(stack.enter_context(job_folder(services, job.tenant, job_id, interrupt)))
        for job_id in sorted(set(job_ids(job.spec)))
    }
    places = Places(
        models=str(settings.models_dir),
        calibration=str(settings.calibration_dir),
        suites=str(settings.suites_dir),
        hub_cache=str(settings.work_dir / "hub"),
        cache_bytes=settings.model_cache_bytes,
        allow_hub=settings.allow_hub,
        jobs=fetched,
        state=str(services.states_dir / job.id),
        binding=binding,
        memory_bytes=services.memory_bytes,
    )
    return {
        "kind": job.kind,
        "spec": job.spec,
        "output": str(workspace.output),
        "places": asdict(places),
        "device": settings.device,
        "hooks": dict(hooks),
    }


def job_ids(value: Any) -> Iterator[str]:
    """The ids of all earlier jobs that a spec refers to: models of source "job" and plans."""
    if isinstance(value, Mapping):
        if isinstance(value.get("job_id"), str):
            yield value["job_id"]
        for part in value.values():
            yield from job_ids(part)
    elif isinstance(value, list):
        for part in value:
            yield from job_ids(part)


def expected_bytes(services: Services, claim: Claim) -> int:
    """What the job writes at most: a pruned model is no larger than its source once that is loaded.

    The state of a streamed calibration counts, but for what an earlier attempt has left of it. A model of the
    hub counts nothing: its size is not known yet.
    """
    specs = list(_prune_specs(claim.job.kind, claim.job.spec))
    states = sum(_state_bytes(services, spec) for spec in specs)
    here = services.states_dir / claim.job.id
    kept = folder_bytes(here) if here.is_dir() else 0
    return sum(_written_bytes(services, spec) for spec in specs) + max(0, states - kept)


def _prune_specs(kind: str, spec: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    if kind == "pipeline":
        for step in spec["steps"]:
            yield from _prune_specs(step["kind"], step["spec"])
    elif kind == "prune":
        yield spec


def _written_bytes(services: Services, spec: Mapping[str, Any]) -> int:
    model, dtype = spec["model"], spec.get("dtype")
    if model["source"] == "job":
        return _job_bytes(services, model["job_id"], dtype)
    if model["source"] == "local":
        return _local_bytes(services.settings.models_dir / str(model["name"]), dtype)
    return 0


def _state_bytes(services: Services, spec: Mapping[str, Any]) -> int:
    """What the state of a calibration takes if it is streamed; 0 if it isn't, or where that is not known."""
    if spec["model"]["source"] != "local" or not spec.get("calibration"):
        return 0
    try:
        facts = inspect_model_folder(services.settings.models_dir / str(spec["model"]["name"]))
        way = execution_of(parse_spec("prune", dict(spec)), spec, facts, services.memory_bytes)
    except (HeaderError, OSError, ValueError):
        return 0  # the engine says what is wrong with it
    return state_bytes(facts, spec) if way.layerwise else 0


def _job_bytes(services: Services, job_id: str, dtype: str | None) -> int:
    stored = sum(artifact.size for artifact in services.repository.list_artifacts(job_id))
    parameters = (services.repository.get_metrics(job_id) or {}).get("pruned_parameters") or 0
    return max(stored, 4 * int(parameters)) if dtype == "float32" else stored


def _local_bytes(folder: Path, dtype: str | None) -> int:
    if not folder.is_dir():
        return 0
    stored = folder_bytes(folder)
    try:
        facts = inspect_model_folder(folder)
    except HeaderError:
        return stored  # the engine says what is wrong with it
    return stored - facts.bytes + loaded_bytes(facts, dtype)


@contextmanager
def job_folder(services: Services, tenant: str, job_id: str, interrupt: Interrupt) -> Iterator[Path]:
    """The artifacts of an earlier job of the same tenant, in the cache.

    Raises:
        InvalidError: there is no such job, or it has no artifacts.
    """
    artifacts = _artifacts_of(services, tenant, job_id)

    def fill(folder: Path) -> None:
        for artifact in artifacts:
            _fetch(services, artifact, folder / artifact.name, interrupt)

    key = artifacts[0].storage.replace("/", "-")
    with services.job_cache.folder(key, fill) as folder:
        yield folder


def _artifacts_of(services: Services, tenant: str, job_id: str) -> list[Artifact]:
    try:
        services.repository.get_job(job_id, tenant)
    except NotFoundError:
        raise InvalidError(f"there is no job {job_id}", code="model_not_found") from None
    artifacts = services.repository.list_artifacts(job_id)
    if not artifacts:
        raise InvalidError(f"job {job_id} has no artifacts (any more)", code="model_not_found")
    return artifacts


def _fetch(services: Services, artifact: Artifact, target: Path, interrupt: Interrupt) -> None:
    """Copy one artifact and check it: a result that rotted in the store must not be pruned further."""
    digest = hashlib.sha256()
    with target.open("wb") as file:
        for chunk in services.store.open_range(artifact.storage, artifact.name, 0, artifact.size):
            interrupt()
            digest.update(chunk)
            file.write(chunk)
    if digest.hexdigest() != artifact.sha256:
        raise StorageError(f"artifact {artifact.name} is not what was published", code="artifact_damaged")
