"""Whether an attempt used the models that its job was admitted with: else nobody may reuse its result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from jobs.admission.estimating import JobFacts
from jobs.admission.reuse import key_of
from jobs.errors import NotFoundError
from jobs.rows import Job, LocalModel
from jobs.specs import LocalModelRef, model_references, parse_spec
from worker.attempt.task import named_jobs
from worker.inputs.inventory import Signature, signature_of
from worker.services import Services

Signatures = Mapping[str, Signature | None]


def model_signatures(services: Services, job: Job) -> Signatures:
    """Sizes and times of the files of each local model that a job names; None for one that is not there."""
    refs = [ref for _, ref in model_references(parse_spec(job.kind, job.spec))]
    return {ref.name: _signature(services, ref.name) for ref in refs if isinstance(ref, LocalModelRef)}


def _signature(services: Services, name: str) -> Signature | None:
    try:
        return signature_of(services.settings.models_dir / name)
    except OSError:
        return None


def is_as_admitted(services: Services, job: Job, before: Signatures) -> bool:
    """Whether the job's `reuse_key` is true of the files as they were `before` the work, and still are."""
    if job.reuse_key is None or model_signatures(services, job) != before:
        return False
    models = [
        LocalModel(name, services.inventory.revision_of(name, signature))
        for name, signature in before.items()
    ]
    me = (worker for worker in services.repository.live_workers() if worker.id == services.worker_id)
    mine = [replace(worker, models=models) for worker in me]
    try:
        named = {key: services.repository.get_job(key, job.tenant) for key, _ in set(named_jobs(job.spec))}
    except NotFoundError:
        return False
    sources = {key: JobFacts(source, {}, []) for key, source in named.items()}
    return key_of(job.kind, parse_spec(job.kind, job.spec), mine, sources) == job.reuse_key


def has_changed(services: Services, job: Job, models: Signatures) -> bool:
    """Whether a job begins with other models, or other code, than it was admitted with.

    It may have waited for long, for a worker that was not there yet. Not said of a model that this worker
    hasn't looked at, which the attempt will.
    """
    known = [services.inventory.revision_of(name, signature) for name, signature in models.items()]
    return job.reuse_key is not None and None not in known and not is_as_admitted(services, job, models)
