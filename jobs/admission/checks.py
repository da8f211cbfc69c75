"""Whether a request can be carried out at all, where, and at what cost; decided before a job exists.

It reads what live workers have said of themselves, never a disk. A job goes only to a queue of which a
live worker has the models, the named files and the device; otherwise the request is refused with the code
that says why.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from jobs.admission.estimating import Cost, JobFacts, cost_of, facts_of_job, spec_of_step
from jobs.admission.gates import check_gates, suite_facts
from jobs.admission.limits import check_limits
from jobs.admission.naming import instead
from jobs.admission.reuse import reuse_key
from jobs.errors import InvalidError, NotFoundError, NoWorkerError
from jobs.rows import Artifact, Job, JsonObject, LocalModel, Worker, warning
from jobs.specs import (
    AnyRequest,
    HubModelRef,
    ImportanceSpec,
    JobModelRef,
    LocalModelRef,
    PipelineSpec,
    PruneSpec,
    Spec,
    UploadRef,
    model_references,
    upload_references,
)
from jobs.states import State
from jobs.uploads.rows import Upload

RETRY_AFTER_SECONDS = 10
#: A job of at most so long an estimate goes to the queue `short`.
SHORT_SECONDS = 60.0
Location = tuple[str | int, ...]
HUB_NOT_ALLOWED = "no live worker may use the hub: an operator allows it with OPTIPFAIR_ALLOW_HUB=1"
_FILES = {
    "calibration": ("calibration_not_found", "calibration file"),
    "suites": ("suite_not_found", "suite"),
}


class Books(Protocol):
    """What admission asks the repository."""

    def live_workers(self) -> list[Worker]:
        """The workers that are alive."""
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


@dataclass(frozen=True)
class Admission:
    """Where a job goes, what it will need, and the key under which an equal result can be found again.

    The estimate is None for a model on the hub: its sizes are known only once it has been fetched.
    """

    queue: str
    estimate: Cost | None
    reuse_key: str | None
    warnings: list[JsonObject] = field(default_factory=list)


@dataclass(frozen=True)
class Need:
    """One thing that a worker must have."""

    met_by: Callable[[Worker], bool]
    refusal: InvalidError


def admit(books: Books, tenant: str, request: AnyRequest) -> Admission:
    """Admit a request or refuse it.

    Raises InvalidError with `location` into the body (`model_not_found`, `model_pickled` and the other codes
    of the header reader, `hub_not_allowed`, `calibration_not_found`, `suite_not_found`,
    `device_unavailable`, `model_too_large`, `layers_out_of_range`, `window_too_long`,
    `pruning_type_unfit`, `target_unreachable`, `metric_not_produced`), and NoWorkerError.
    """
    workers = books.live_workers()
    if not workers:
        raise NoWorkerError("no worker is alive at the moment", retry_after=RETRY_AFTER_SECONDS)
    able = workers
    for need in needs(request.spec, ("spec",), workers):
        able = [worker for worker in able if need.met_by(worker)]
        if not able:
            raise need.refusal
    sources = _sources(books, tenant, request.spec)
    uploads = _uploads_named(books, tenant, request.spec)
    each = _facts_of_each(request.spec, able, sources, uploads)
    for (where, part), known in zip(_parts(request.spec), each, strict=True):
        check_limits(where, part, known)
    suites = suite_facts(able)
    check_gates(request, suites)
    cost = cost_of(request.kind, request.spec, [_larger(known) for known in each], suites)
    queue, able = _choose_queue(_queue_order(request, cost), able, cost)
    return Admission(queue, cost, reuse_key(request, able, sources), _warnings(request, cost))


def _sources(books: Books, tenant: str, spec: Spec) -> dict[str, JobFacts]:
    """The earlier jobs that a spec names, each looked at once for every way in which it is named."""
    return {job_id: _source_job(books, tenant, job_id, step, at) for job_id, step, at in _jobs_named(spec)}


def _warnings(request: AnyRequest, cost: Cost | None) -> list[JsonObject]:
    """What can be said before the job runs."""
    if cost is None:
        message = "the model's sizes are known only once it is fetched: memory and time were not estimated"
        return [warning("size_unknown", message)]
    if request.timeout_seconds is not None and cost.seconds > request.timeout_seconds:
        message = f"the job is estimated to take {cost.seconds:.0f} seconds, and may run for "
        return [warning("timeout_short", f"{message}{request.timeout_seconds} (timeout_seconds)")]
    return []


def needs(spec: Spec, where: Location, workers: Sequence[Worker]) -> Iterator[Need]:
    """What a worker must have for a spec (which lies at `where` in the body), each with its refusal."""
    for at, ref in model_references(spec):
        location = (*where, *at)
        if isinstance(ref, LocalModelRef):
            yield _local_model(ref.name, location, workers)
        elif isinstance(ref, HubModelRef):
            yield _hub(location)
    for at, part in _text_references(spec):
        location = (*where, *at)
        if part.source == "local":
            yield _file("calibration", part.name, (*location, "name"), workers)
        if getattr(part, "dataset", None) is not None:
            yield _hub(location)
    for at, suite in _suites(spec):
        yield _file("suites", suite, (*where, *at), workers)


def _local_model(name: str, location: Location, workers: Sequence[Worker]) -> Need:
    """A usable model of that name; if every worker has a problem with it, the refusal says which."""
    found = [model for worker in workers for model in worker.models if model.name == name]
    problem = next((model.problem for model in found if model.problem is not None), None)
    where = (*location, "name")
    if problem is not None and all(model.problem for model in found):
        refusal = InvalidError(problem.message, code=problem.code, location=where)
    else:
        usable = {m.name for worker in workers for m in worker.models if m.problem is None}
        message = f"no live worker has a model named {name!r}: {instead(name, usable, 'models', 'models')}"
        refusal = InvalidError(message, code="model_not_found", location=where)
    return Need(lambda worker: _model(worker, name) is not None, refusal)


def _hub(location: Location) -> Need:
    refusal = InvalidError(HUB_NOT_ALLOWED, code="hub_not_allowed", location=location)
    return Need(lambda worker: worker.allow_hub, refusal)


def _file(folder: str, name: str, location: Location, workers: Sequence[Worker]) -> Need:
    code, what = _FILES[folder]
    there = {found for worker in workers for found in worker.files.get(folder, [])}
    message = f"no live worker has a {what} named {name!r}: {instead(name, there, f'{what}s', folder)}"
    refusal = InvalidError(message, code=code, location=location)
    return Need(lambda worker: name in worker.files.get(folder, []), refusal)


def _model(worker: Worker, name: str) -> LocalModel | None:
    return next((m for m in worker.models if m.name == name and m.problem is None), None)


def _parts(spec: Spec) -> Iterator[tuple[Location, Any]]:
    """The spec itself, or each step's."""
    if isinstance(spec, PipelineSpec):
        for number, step in enumerate(spec.steps):
            yield ("steps", number, "spec"), step.spec
    else:
        yield (), spec


def _text_references(spec: Spec) -> Iterator[tuple[Location, Any]]:
    for where, part in _parts(spec):
        for name in ("calibration", "evaluation", "text"):
            value = getattr(part, name, None)
            if value is not None:
                yield (*where, name), value


def _suites(spec: Spec) -> Iterator[tuple[Location, str]]:
    for where, part in _parts(spec):
        if isinstance(getattr(part, "suite", None), str):
            yield (*where, "suite"), part.suite


def _jobs_named(spec: Spec) -> Iterator[tuple[str, str | None, Location]]:
    """Jobs whose checkpoint or plan the spec refers to, and of a pipeline which step's."""
    for where, ref in model_references(spec):
        if isinstance(ref, JobModelRef):
            yield ref.job_id, ref.step, ("spec", *where, "job_id")
    for where, part in _parts(spec):
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


def _uploads_named(books: Books, tenant: str, spec: Spec) -> dict[str, JsonObject | None]:
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
    if job.state is not State.SUCCEEDED:
        return f"that job has no checkpoint: it is {job.state.value}, and only success leaves one"
    return "the files of that job are no longer kept" if job.artifacts_expire_at is None else None


def _choose_queue(order: Iterable[str], able: list[Worker], cost: Cost | None) -> tuple[str, list[Worker]]:
    """The first queue that a worker with enough memory serves, and all of the able workers that serve it."""
    served = []
    for queue in order:
        serving = [worker for worker in able if queue in worker.queues and has_device(worker, queue)]
        if serving and _largest_memory(serving) >= (0 if cost is None else cost.peak_memory_bytes):
            return queue, serving
        served += serving
    if served and cost is not None:
        needed, there = cost.peak_memory_bytes, _largest_memory(served)
        message = f"the job needs about {needed} bytes of memory; a worker has {there:.0f}"
        raise InvalidError(message, code="model_too_large", location=("spec", "model"))
    message = "no live worker that has the model serves a queue with the wanted device"
    raise InvalidError(message, code="device_unavailable", location=("spec", "device"))


def _largest_memory(workers: Sequence[Worker]) -> float:
    """Bytes; a worker that has not said how much it has is taken to have enough."""
    return max(math.inf if worker.memory_bytes is None else worker.memory_bytes for worker in workers)


def _device(spec: Spec) -> str:
    wanted = {getattr(part, "device", "auto") for _, part in _parts(spec)}
    return "cuda" if "cuda" in wanted else "cpu" if "cpu" in wanted else "auto"


def _queue_order(request: AnyRequest, cost: Cost | None) -> Iterable[str]:
    if request.kind == "analyze":
        return ("short", "cpu", "gpu")
    on_cpu = ("short", "cpu") if _is_short(request.spec, cost) else ("cpu",)
    return {"cuda": ("gpu",), "cpu": on_cpu, "auto": ("gpu", *on_cpu)}[_device(request.spec)]


def _is_short(spec: Spec, cost: Cost | None) -> bool:
    """Whether the job is so quick that it should not wait behind a long one.

    Only what the estimate covers whole: static pruning, and layer importance. Calibration, healing,
    evaluation and bias depend on more than sizes.
    """
    if cost is None or cost.seconds > SHORT_SECONDS:
        return False
    if isinstance(spec, PruneSpec):
        return spec.calibration is None and spec.evaluation is None and spec.healing is None
    return isinstance(spec, ImportanceSpec)


def has_device(worker: Worker, queue: str) -> bool:
    """Whether a worker can compute on what a queue stands for."""
    return queue != "gpu" or any(device.startswith("cuda") for device in worker.devices)


def _facts_of_each(
    spec: Spec,
    able: Sequence[Worker],
    sources: dict[str, JobFacts],
    uploads: dict[str, JsonObject | None],
) -> list[list[JsonObject | None]]:
    """For each part of the spec the facts of its model and of its baseline; None where they are not known."""
    by_step: dict[str, JsonObject | None] = {}
    found: list[list[JsonObject | None]] = []
    steps = spec.steps if isinstance(spec, PipelineSpec) else []
    for number, (_, part) in enumerate(_parts(spec)):
        each = [_facts_of(ref, able, sources, {**uploads, **by_step}) for _, ref in model_references(part)]
        found.append(each)
        if steps:
            by_step[steps[number].name] = _pruned(part, each[0])
    return found


def _larger(each: Sequence[JsonObject | None]) -> JsonObject | None:
    """Of a model and its baseline the larger one, which stands for both in the estimate."""
    known = [facts for facts in each if facts is not None]
    return max(known, key=lambda facts: facts["bytes"]) if len(known) == len(each) else None


def _facts_of(
    ref: Any, able: Sequence[Worker], sources: dict[str, JobFacts], known: dict[str, JsonObject | None]
) -> JsonObject | None:
    if isinstance(ref, LocalModelRef):
        return next(filter(None, (_model(worker, ref.name) for worker in able))).facts
    if isinstance(ref, JobModelRef):
        return facts_of_job(sources[ref.job_id], able, ref.step)
    if isinstance(ref, UploadRef):
        return known.get(ref.id)
    return None if isinstance(ref, HubModelRef) else known.get(ref.name)


def _pruned(part: Any, facts: JsonObject | None) -> JsonObject | None:
    """The facts of what a step writes: those of its model, with the layers that stay where that is known."""
    count = (facts or {}).get("num_layers")
    if facts is None or count is None or not isinstance(part, PruneSpec):
        return facts
    return {**facts, "num_layers": part.layers_left(count)}


def cost_of_job(books: Books, job: Job, spec: Spec, workers: Sequence[Worker]) -> Cost | None:
    """The estimate of a job that was admitted before; None if a model or an earlier job is gone by now."""
    wanted = list(needs(spec, ("spec",), workers))
    able = [worker for worker in workers if all(need.met_by(worker) for need in wanted)]
    if not able:
        return None
    try:
        sources = _sources(books, job.tenant, spec)
        uploads = _uploads_named(books, job.tenant, spec)
    except InvalidError:
        return None
    each = _facts_of_each(spec, able, sources, uploads)
    return cost_of(job.kind, spec, [_larger(known) for known in each], suite_facts(able))
