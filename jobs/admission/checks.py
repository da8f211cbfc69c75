"""Whether a request can be carried out at all, where, and at what cost; decided before a job exists.

It reads what live workers have said of themselves, never a disk. A job goes only to a queue of which a
live worker has the models, the named files and the device; otherwise the request is refused with the code
that says why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from jobs.admission.estimating import Cost, JobFacts, cost_of, facts_of_job
from jobs.admission.reuse import reuse_key
from jobs.errors import InvalidError, NotFoundError, NoWorkerError
from jobs.rows import Artifact, Job, JsonObject, LocalModel, Worker
from jobs.specs import (
    AnyRequest,
    HubModelRef,
    ImportanceSpec,
    JobModelRef,
    LocalModelRef,
    PipelineSpec,
    PruneSpec,
    Spec,
    model_references,
)
from jobs.states import State

RETRY_AFTER_SECONDS = 10
#: A job of at most so long an estimate goes to the queue `short`.
SHORT_SECONDS = 60.0
Location = tuple[str | int, ...]


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


@dataclass(frozen=True)
class Admission:
    """Where a job goes, what it will need, and the key under which an equal result can be found again.

    The estimate is None for a model on the hub: its sizes are known only once it has been fetched.
    """

    queue: str
    estimate: Cost | None
    reuse_key: str | None


@dataclass(frozen=True)
class Need:
    """One thing that a worker must have."""

    met_by: Callable[[Worker], bool]
    refusal: InvalidError


def admit(books: Books, tenant: str, request: AnyRequest) -> Admission:
    """Admit a request or refuse it.

    Raises InvalidError with `location` into the body (`model_not_found`, `model_pickled` and the other codes
    of the header reader, `hub_not_allowed`, `calibration_not_found`, `suite_not_found`,
    `device_unavailable`, `model_too_large`, `layers_out_of_range`), and NoWorkerError.
    """
    workers = books.live_workers()
    if not workers:
        raise NoWorkerError("no worker is alive at the moment", retry_after=RETRY_AFTER_SECONDS)
    able = workers
    for need in needs(request.spec, ("spec",), workers):
        able = [worker for worker in able if need.met_by(worker)]
        if not able:
            raise need.refusal
    sources = {
        job_id: _source_job(books, tenant, job_id, where) for job_id, where in _jobs_named(request.spec)
    }
    facts = _facts(request.spec, able, sources)
    _check_layers(request.spec, facts)
    cost_on = partial(cost_of, request.kind, request.spec, facts)
    queue, able, cost = _choose_queue(_queue_order(request, cost_on()), able, cost_on)
    return Admission(queue, cost, reuse_key(request, able, sources))


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
        if part.name is not None:
            yield _file("calibration", part.name, (*location, "name"))
        if getattr(part, "dataset", None) is not None:
            yield _hub(location)
    for at, suite in _suites(spec):
        yield _file("suites", suite, (*where, *at))


def _local_model(name: str, location: Location, workers: Sequence[Worker]) -> Need:
    """A usable model of that name; if every worker has a problem with it, the refusal says which."""
    found = [model for worker in workers for model in worker.models if model.name == name]
    problem = next((model.problem for model in found if model.problem is not None), None)
    where = (*location, "name")
    if problem is not None and all(model.problem for model in found):
        refusal = InvalidError(problem.message, code=problem.code, location=where)
    else:
        refusal = InvalidError(
            f"no live worker has a model named {name!r}", code="model_not_found", location=where
        )
    return Need(lambda worker: _model(worker, name) is not None, refusal)


def _hub(location: Location) -> Need:
    refusal = InvalidError("no live worker may use the hub", code="hub_not_allowed", location=location)
    return Need(lambda worker: worker.allow_hub, refusal)


def _file(folder: str, name: str, location: Location) -> Need:
    code = "suite_not_found" if folder == "suites" else "calibration_not_found"
    refusal = InvalidError(f"no live worker has a file named {name!r}", code=code, location=location)
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
        if getattr(part, "suite", None) is not None:
            yield (*where, "suite"), part.suite


def _jobs_named(spec: Spec) -> Iterator[tuple[str, Location]]:
    """Jobs whose checkpoint or plan the spec refers to."""
    for where, ref in model_references(spec):
        if isinstance(ref, JobModelRef):
            yield ref.job_id, ("spec", *where, "job_id")
    for where, part in _parts(spec):
        if isinstance(part, PruneSpec) and part.plan is not None:
            yield part.plan.job_id, ("spec", *where, "plan", "job_id")


def _source_job(books: Books, tenant: str, job_id: str, where: Location) -> JobFacts:
    """An earlier job of the same tenant that wrote a checkpoint which is still kept."""
    try:
        job = books.get_job(job_id, tenant)
    except NotFoundError as error:
        raise InvalidError("no such job", code="model_not_found", location=where) from error
    if job.kind != "prune" or job.state is not State.SUCCEEDED or job.artifacts_expire_at is None:
        message = "that job has no checkpoint: it must be a prune job that succeeded and whose files are kept"
        raise InvalidError(message, code="model_not_found", location=where)
    return JobFacts(job, books.get_metrics(job_id) or {}, books.list_artifacts(job_id))


def _choose_queue(
    order: Iterable[str], able: list[Worker], cost_on: Callable[[int | None], Cost | None]
) -> tuple[str, list[Worker], Cost | None]:
    """The first queue that a worker with enough memory serves, all able workers that serve it, and the cost.

    The cost is that of the queue's worker with the most memory. A queue where memory is so short that a prune
    would be streamed for it is taken only if no other can do it.
    """
    served: list[Worker] = []
    streaming: tuple[str, list[Worker], Cost | None] | None = None
    anyway = cost_on(None)
    for queue in order:
        serving = [worker for worker in able if queue in worker.queues and has_device(worker, queue)]
        if not serving:
            continue
        memory = _largest_memory(serving)
        cost = cost_on(memory)
        if fits(cost, memory):
            if cost is None or anyway is None or cost.execution == anyway.execution:
                return queue, serving, cost
            streaming = streaming or (queue, serving, cost)
        served += serving
    if streaming is not None:
        return streaming
    cost = cost_on(_largest_memory(served)) if served else None
    if cost is not None:
        needed, there = cost.peak_memory_bytes, _largest_memory(served)
        message = cost.problem or f"the job needs about {needed} bytes of memory; a worker has {there}"
        raise InvalidError(message, code="model_too_large", location=("spec", "model"))
    message = "no live worker that has the model serves a queue with the wanted device"
    raise InvalidError(message, code="device_unavailable", location=("spec", "device"))


def fits(cost: Cost | None, memory_bytes: int | None) -> bool:
    """Whether a job of that cost can be carried out in so much memory; None: without a limit."""
    if cost is None:
        return True
    return cost.problem is None and (memory_bytes is None or cost.peak_memory_bytes <= memory_bytes)


def _largest_memory(workers: Sequence[Worker]) -> int | None:
    """Bytes; None if a worker has not said how much it has: it is taken to have enough."""
    sizes = [worker.memory_bytes for worker in workers]
    return None if None in sizes else max(size for size in sizes if size is not None)


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


def _facts(spec: Spec, able: Sequence[Worker], sources: dict[str, JobFacts]) -> list[JsonObject | None]:
    """For each part of the spec the facts of its model; None where they are not known.

    Of a model and its baseline it is the larger one's: that stands for both in the estimate.
    """
    by_step: dict[str, JsonObject | None] = {}
    found: list[JsonObject | None] = []
    steps = spec.steps if isinstance(spec, PipelineSpec) else []
    for number, (_, part) in enumerate(_parts(spec)):
        each = [_facts_of(ref, able, sources, by_step) for _, ref in model_references(part)]
        known = [facts for facts in each if facts is not None]
        found.append(max(known, key=lambda facts: facts["bytes"]) if len(known) == len(each) else None)
        if steps:
            by_step[steps[number].name] = _pruned(part, each[0])
    return found


def _facts_of(
    ref: Any, able: Sequence[Worker], sources: dict[str, JobFacts], by_step: dict[str, JsonObject | None]
) -> JsonObject | None:
    if isinstance(ref, LocalModelRef):
        return next(filter(None, (_model(worker, ref.name) for worker in able))).facts
    if isinstance(ref, JobModelRef):
        return facts_of_job(sources[ref.job_id], able)
    return None if isinstance(ref, HubModelRef) else by_step.get(ref.name)


def _pruned(part: Any, facts: JsonObject | None) -> JsonObject | None:
    """The facts of what a step writes: those of its model, with the layers that stay where that is known."""
    count = (facts or {}).get("num_layers")
    if facts is None or count is None or not isinstance(part, PruneSpec):
        return facts
    return {**facts, "num_layers": part.layers_left(count)}


def _check_layers(spec: Spec, facts: Sequence[JsonObject | None]) -> None:
    """Layers that the model does not have are refused here; the header tells how many there are."""
    for (where, part), known in zip(_parts(spec), facts, strict=True):
        count = (known or {}).get("num_layers")
        if count is None or not isinstance(part, PruneSpec):
            continue
        if any(index >= count for index in part.layer_indices or ()):
            raise _layers(f"the model has {count} layers", (*where, "layer_indices"))
        if (part.num_layers_to_remove or 0) >= count:
            message = f"the model has {count} layers, and at least one must stay"
            raise _layers(message, (*where, "num_layers_to_remove"))


def _layers(message: str, where: Location) -> InvalidError:
    return InvalidError(message, code="layers_out_of_range", location=("spec", *where))


def cost_of_job(
    books: Books, job: Job, spec: Spec, workers: Sequence[Worker]
) -> Callable[[int | None], Cost | None]:
    """The estimate of a job that was admitted before, for a worker with so much memory.

    It is None if a model or an earlier job is gone by now.
    """
    wanted = list(needs(spec, ("spec",), workers))
    able = [worker for worker in workers if all(need.met_by(worker) for need in wanted)]
    if not able:
        return lambda _memory: None
    try:
        sources = {
            job_id: _source_job(books, job.tenant, job_id, where) for job_id, where in _jobs_named(spec)
        }
    except InvalidError:
        return lambda _memory: None
    return partial(cost_of, job.kind, spec, _facts(spec, able, sources))
