"""From a claimed job to the plain JSON task that its engine process gets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

from jobs.rows import Claim
from worker.inputs import Places
from worker.publishing import Workspace
from worker.services import Services


def build_task(
    services: Services, claim: Claim, workspace: Workspace, hooks: Mapping[str, str], stack: ExitStack
) -> dict[str, Any]:
    """Everything that the engine's process needs; checkpoints of earlier jobs are fetched here.

    They are fetched here and not there because the artifact store's credentials stay out of that process.
    """
    settings, job = services.settings, claim.job
    fetched = {
        job_id: str(stack.enter_context(job_folder(services, job_id))) for job_id in sorted(job_ids(job.spec))
    }
    places = Places(
        models=str(settings.models_dir),
        calibration=str(settings.calibration_dir),
        suites=str(settings.suites_dir),
        hub_cache=str(settings.work_dir / "hub"),
        cache_bytes=settings.model_cache_bytes,
        allow_hub=settings.allow_hub,
        jobs=fetched,
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
