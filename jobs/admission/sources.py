"""The earlier jobs and the uploads that a request names: they must be the tenant's, finished and kept."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from jobs.admission.estimating import JobFacts, spec_of_step
from jobs.errors import InvalidError, NotFoundError
from jobs.rows import Artifact, Job, JsonObject, Worker
from jobs.specs import JobModelRef, PipelineSpec, PruneSpec, Spec, model_references, upload_references
from jobs.states import State
from jobs.uploads.rows import Upload

Location = tuple[str | int, ...]


class Books(Protocol):
    """What admission asks the repository."""

    def live_workers(self) -> list[Worker]:
        """The workers that are alive."""
        ...

    def known_workers(self) -> list[Worker]:
        """Those, and the workers that can be started on demand."""
        ...

    def get_job(self, job_id: str, tenant: str | None = None) -> Job:
        """A job of the tenant."""
        ...

    def get_metrics(self, job_id: str) -> JsonObject | None:
        """Its metrics."""
        ...

    def list_artifacts(self, job_id: str) -> list[Artifact]:
        """Its files."""
        ...

    def get_upload(self, upload_id: str, tenant: str | None = None) -> Upload:
        """An upload of the tenant."""
        ...


def sources_of(books: Books, tenant: str, spec: Spec) -> dict[str, JobFacts]:
    """The earlier jobs that a spec names, each looked at once for every way in which it is named."""
    return {job_id: _source_job(books, tenant, job_id, step, at) for job_id, step, at in _jobs_named(spec)}


def uploads_of(books: Books, tenant: str, spec: Spec) -> dict[str, JsonObject | None]:
    """The facts of each upload that the spec names, by its id; refused unless it may be used as that."""
    found: dict[str, JsonObject | None] = {}
    for at, upload_id, kind in upload_references(spec):
        where = ("spec", *at) if at[-1] == "suite" else ("spec", *at, "id")
        try:
            upload = books.get_upload(upload_id, tenant)
        except NotFoundError as error:
            raise InvalidError("no such upload", code="upload_not_found", location=where) from error
        if not upload.complete:
            message = "this upload is not complete: send its files, then POST …/complete"
            raise InvalidError(message, code="upload_not_complete", location=where)
        if upload.kind != kind:
            message = f"this upload is a {upload.kind}; a {kind} is needed here"
            raise InvalidError(message, code="upload_kind_wrong", location=where)
        found[upload_id] = upload.facts
    return found


def parts_of(spec: Spec) -> Iterator[tuple[Location, Any]]:
    """The spec itself, or each step's."""
    if isinstance(spec, PipelineSpec):
        for number, step in enumerate(spec.steps):
            yield ("steps", number, "spec"), step.spec
    else:
        yield (), spec


def _jobs_named(spec: Spec) -> Iterator[tuple[str, str | None, Location]]:
    """Jobs whose checkpoint or plan the spec refers to, and of a pipeline which step's."""
    for where, ref in model_references(spec):
        if isinstance(ref, JobModelRef):
            yield ref.job_id, ref.step, ("spec", *where, "job_id")
    for where, part in parts_of(spec):
        if isinstance(part, PruneSpec) and part.plan is not None:
            yield part.plan.job_id, None, ("spec", *where, "plan", "job_id")


def _source_job(books: Books, tenant: str, job_id: str, step: str | None, where: Location) -> JobFacts:
    """An earlier job of the same tenant that wrote a checkpoint which is still kept."""
    try:
        job = books.get_job(job_id, tenant)
    except NotFoundError as error:
        raise InvalidError("no such job", code="model_not_found", location=where) from error
    fault = _fault_of_source(job, step)
    if fault is not None:
        raise InvalidError(fault, code="model_not_found", location=where)
    return JobFacts(job, books.get_metrics(job_id) or {}, books.list_artifacts(job_id))


def _fault_of_source(job: Job, step: str | None) -> str | None:
    """Why a job's checkpoint can't be used, if it can't."""
    steps = [item["name"] for item in job.spec.get("steps", ()) if item["kind"] == "prune"]
    if job.kind == "pipeline" and (step is None or spec_of_step(job, step) is None):
        named = " or ".join(f'"step": "{name}"' for name in steps)
        said = "say which step's" if step is None else f"it has no prune step named {step!r}"
        return f"that job is a pipeline: {said}, {named}" if steps else "no step of that pipeline prunes"
    if job.kind != "pipeline" and step is not None:
        return "step is for pipelines; that job is none"
    if job.kind not in ("prune", "pipeline"):
        return f"that job has no checkpoint: it is of kind {job.kind}, and only prune jobs write one"
    if job.state is not State.SUCCEEDED and step not in job.kept_steps:
        return f"that job has no checkpoint: it is {job.state.value}, and only success leaves one"
    return "the files of that job are no longer kept" if job.artifacts_expire_at is None else None
