"""From a claimed job to the plain JSON task that its engine process gets."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jobs.admission.estimating import model_facts
from jobs.admission.execution import execution_of
from jobs.artifacts import Interrupt
from jobs.errors import InvalidError, NotFoundError, StorageError
from jobs.rows import Artifact, Claim, JsonObject
from jobs.specs import parse_spec
from jobs.uploads.checking import read_file
from optipfair_engine.headers import HeaderError, inspect_model_folder, loaded_bytes, state_bytes
from worker.attempt.publishing import Workspace
from worker.inputs.cache import folder_bytes
from worker.inputs.places import Places, place_of
from worker.services import Services


def build_task(
    services: Services,
    claim: Claim,
    workspace: Workspace,
    hooks: Mapping[str, str],
    stack: ExitStack,
    interrupt: Interrupt,
    binding: str,
    finished: Mapping[str, JsonObject],
) -> dict[str, Any]:
    """Everything that the engine's process needs; checkpoints of earlier jobs are fetched here.

    They are fetched here and not there because the artifact store's credentials stay out of that process.
    `interrupt` is called all the while, and ends the fetching by raising. `binding` is what the state of an
    earlier attempt must be bound to, `finished` the metrics of the steps that are done already.
    """
    settings, job = services.settings, claim.job
    fetched = {
        place_of(job_id, step): str(
            stack.enter_context(job_folder(services, job.tenant, job_id, interrupt, step))
        )
        for job_id, step in sorted(set(named_jobs(job.spec)), key=str)
    }
    uploads = {
        upload_id: str(stack.enter_context(upload_folder(services, job.tenant, upload_id, interrupt)))
        for upload_id in sorted(set(upload_ids(job.spec)))
    }
    places = Places(
        models=str(settings.models_dir),
        calibration=str(settings.calibration_dir),
        suites=str(settings.suites_dir),
        hub_cache=str(settings.work_dir / "hub"),
        cache_bytes=settings.model_cache_bytes,
        allow_hub=settings.allow_hub,
        jobs=fetched,
        uploads=uploads,
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
        "finished": dict(finished),
    }


def named_jobs(value: Any) -> Iterator[tuple[str, str | None]]:
    """All earlier jobs that a spec refers to (models of source "job" and plans), with the step, if any."""
    if isinstance(value, Mapping):
        if isinstance(value.get("job_id"), str):
            yield value["job_id"], value.get("step")
        for part in value.values():
            yield from named_jobs(part)
    elif isinstance(value, list):
        for part in value:
            yield from named_jobs(part)


def upload_ids(value: Any) -> Iterator[str]:
    """The ids of all uploads that a spec refers to."""
    if isinstance(value, Mapping):
        if value.get("source") == "upload":
            yield value["id"]
        for part in value.values():
            yield from upload_ids(part)
    elif isinstance(value, list):
        for part in value:
            yield from upload_ids(part)


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
        return _job_bytes(services, model["job_id"], model.get("step"), dtype)
    if model["source"] == "local":
        return _local_bytes(services.settings.models_dir / str(model["name"]), dtype)
    if model["source"] == "upload":
        return _upload_bytes(services, model["id"], dtype)
    return 0


def _state_bytes(services: Services, spec: Mapping[str, Any]) -> int:
    """What the state of a calibration takes that is streamed, or what several processes leave of theirs.

    0 if it is neither, or where that is not known.
    """
    if spec["model"]["source"] != "local" or not spec.get("calibration"):
        return 0
    try:
        facts = inspect_model_folder(services.settings.models_dir / str(spec["model"]["name"]))
        way = execution_of(parse_spec("prune", dict(spec)), spec, facts, services.memory_bytes)
    except (HeaderError, OSError, ValueError):
        return 0  # the engine says what is wrong with it
    shared = spec.get("processes", 1) > 1
    return state_bytes(facts, spec) if way.layerwise or shared else 0


def _upload_bytes(services: Services, upload_id: str, dtype: str | None) -> int:
    try:
        facts = model_facts(services.repository.get_upload(upload_id).facts or {})
    except (NotFoundError, KeyError):
        return 0  # gone: the attempt says so
    return sum(facts.files.values()) - facts.bytes + loaded_bytes(facts, dtype)


def _job_bytes(services: Services, job_id: str, step: str | None, dtype: str | None) -> int:
    before = "" if step is None else f"{step}."
    artifacts = services.repository.list_artifacts(job_id)
    stored = sum(artifact.size for artifact in artifacts if artifact.name.startswith(before))
    parameters = (services.repository.get_metrics(job_id) or {}).get(f"{before}pruned_parameters") or 0
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
def job_folder(
    services: Services, tenant: str, job_id: str, interrupt: Interrupt, step: str | None = None
) -> Iterator[Path]:
    """The artifacts of an earlier job of the same tenant, in the cache; of one step under their own names.

    Raises:
        InvalidError: there is no such job, or it (or its step) has no artifacts.
    """
    before = "" if step is None else f"{step}."
    artifacts = [item for item in _artifacts_of(services, tenant, job_id) if item.name.startswith(before)]
    if not artifacts:
        raise InvalidError(f"job {job_id} has no files of a step {step!r}", code="model_not_found")

    def fill(folder: Path) -> None:
        for artifact in artifacts:
            fetch(services, artifact, folder / artifact.name.removeprefix(before), interrupt)

    key = artifacts[0].storage.replace("/", "-") + (f"-{step}" if step else "")
    with services.job_cache.folder(key, fill) as folder:
        yield folder


@contextmanager
def upload_folder(services: Services, tenant: str, upload_id: str, interrupt: Interrupt) -> Iterator[Path]:
    """The files of an upload of the same tenant, in the cache.

    Raises:
        InvalidError: there is no such upload (any more), or it is not complete.
    """
    try:
        upload = services.repository.get_upload(upload_id, tenant)
    except NotFoundError:
        raise InvalidError(f"there is no upload {upload_id} (any more)", code="upload_not_found") from None
    if not upload.complete:
        raise InvalidError(f"upload {upload_id} is not complete", code="upload_not_complete")

    def fill(folder: Path) -> None:
        for file in upload.files:
            chunks = read_file(services.store, file)
            _copy(chunks, file.name, file.sha256, folder / file.name, interrupt)

    with services.job_cache.folder(f"upload-{upload.id}", fill) as folder:
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


def fetch(services: Services, artifact: Artifact, target: Path, interrupt: Interrupt) -> None:
    """Copy one published file out of the store.

    Raises:
        StorageError: it is not what was published, or not there.
    """
    chunks = services.store.open_range(artifact.storage, artifact.name, 0, artifact.size)
    _copy(chunks, artifact.name, artifact.sha256, target, interrupt)


def _copy(chunks: Iterator[bytes], name: str, sha256: str, target: Path, interrupt: Interrupt) -> None:
    """Copy one file and check it: what rotted in the store must not be pruned further."""
    digest = hashlib.sha256()
    with target.open("wb") as file:
        for chunk in chunks:
            interrupt()
            digest.update(chunk)
            file.write(chunk)
    if digest.hexdigest() != sha256:
        raise StorageError(f"{name} is not what was published", code="artifact_damaged")
