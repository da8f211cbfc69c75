"""Whether a request can be carried out at all, where, and at what cost; decided before a job exists.

It reads what live workers have said of themselves, never a disk. A job goes only to a queue of which a
live worker has the models, the named files and the device; otherwise the request is refused with the code
that says why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from jobs.admission.estimating import Cost, JobFacts, cost_of, facts_of_job
from jobs.admission.gates import check_gates, check_suites, suite_facts
from jobs.admission.limits import check_limits
from jobs.admission.naming import instead
from jobs.admission.reuse import reuse_key
from jobs.admission.sources import Books, Location, parts_of, sources_of, uploads_of
from jobs.errors import InvalidError, NoWorkerError
from jobs.queue import QUEUES, SHORT
from jobs.rows import Job, JsonObject, LocalModel, Worker, warning
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
)
from jobs.specs.deprecated import deprecations_in
from optipfair_engine.options.suites import SuiteName, entry_of, how_to_get

RETRY_AFTER_SECONDS = 10
#: A job of at most so long an estimate goes to the queue `short`.
SHORT_SECONDS = 60.0
HUB_NOT_ALLOWED = "no live worker may use the hub: an operator allows it with OPTIPFAIR_ALLOW_HUB=1"
_FILES = {
    "calibration": ("calibration_not_found", "calibration file"),
    "suites": ("suite_not_found", "suite"),
}


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
    `pruning_type_unfit`, `calibration_unfit`, `dynamic_unfit`, `target_unreachable`,
    `metric_not_produced`, `suite_unfit`), and NoWorkerError.
    """
    workers = books.known_workers()
    if not workers:
        raise NoWorkerError("no worker is alive at the moment", retry_after=RETRY_AFTER_SECONDS)
    able = workers
    for need in needs(request.spec, ("spec",), workers):
        able = [worker for worker in able if need.met_by(worker)]
        if not able:
            raise need.refusal
    sources = sources_of(books, tenant, request.spec)
    uploads = uploads_of(books, tenant, request.spec)
    each = _facts_of_each(request.spec, able, sources, uploads)
    for (where, part), known in zip(parts_of(request.spec), each, strict=True):
        check_limits(where, part, known)
    suites = suite_facts(able)
    check_gates(request, suites)
    check_suites(request.spec, suites)
    cost_on = partial(cost_of, request.kind, request.spec, [_larger(known) for known in each], suites)
    queue, able, cost = _choose_queue(_queue_order(request, cost_on(None)), able, cost_on)
    return Admission(queue, cost, reuse_key(request, able, sources), _warnings(request, cost))


def _warnings(request: AnyRequest, cost: Cost | None) -> list[JsonObject]:
    """What can be said before the job runs."""
    found = [
        warning("deprecated", f"step {step}: {item.sentence}" if step else item.sentence)
        for step, item in deprecations_in(request.kind, request.spec)
    ]
    if cost is None:
        message = "the model's sizes are known only once it is fetched: memory and time were not estimated"
        return [*found, warning("size_unknown", message)]
    if request.timeout_seconds is not None and cost.seconds > request.timeout_seconds:
        message = f"the job is estimated to take {cost.seconds:.0f} seconds, and may run for "
        found.append(warning("timeout_short", f"{message}{request.timeout_seconds} (timeout_seconds)"))
    return found


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
    for at, name in _catalogued(spec):
        yield _catalogued_suite(name, (*where, *at))


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


def _text_references(spec: Spec) -> Iterator[tuple[Location, Any]]:
    for where, part in parts_of(spec):
        for name in ("calibration", "evaluation", "text"):
            value = getattr(part, name, None)
            if value is not None:
                yield (*where, name), value


def _suites(spec: Spec) -> Iterator[tuple[Location, str]]:
    for where, part in parts_of(spec):
        if isinstance(getattr(part, "suite", None), str):
            yield (*where, "suite"), part.suite


def _catalogued(spec: Spec) -> Iterator[tuple[Location, SuiteName]]:
    for where, part in parts_of(spec):
        for number, name in enumerate(getattr(part, "suites", None) or ()):
            if entry_of(name).files:
                yield (*where, "suites", number), name


def _catalogued_suite(name: SuiteName, location: Location) -> Need:
    entry = entry_of(name)
    how = how_to_get(entry, "data/suites")
    message = f"no live worker has the data of the suite {name!r}; whoever runs the service can {how}"
    refusal = InvalidError(message, code="suite_not_found", location=location)
    return Need(
        # what can be checked is fetched by workers that may use the hub
        lambda worker: name in worker.files.get("catalogue", []) or (worker.allow_hub and entry.fetchable),
        refusal,
    )


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
    wanted = {getattr(part, "device", "auto") for _, part in parts_of(spec)}
    return "cuda" if "cuda" in wanted else "cpu" if "cpu" in wanted else "auto"


def _queue_order(request: AnyRequest, cost: Cost | None) -> Iterable[str]:
    if request.kind == "analyze":
        return QUEUES
    on_cpu = (SHORT, "cpu") if _is_short(request.spec, cost) else ("cpu",)
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
    for number, (_, part) in enumerate(parts_of(spec)):
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
        sources = sources_of(books, job.tenant, spec)
        uploads = uploads_of(books, job.tenant, spec)
    except InvalidError:
        return lambda _memory: None
    each = _facts_of_each(spec, able, sources, uploads)
    return partial(cost_of, job.kind, spec, [_larger(known) for known in each], suite_facts(able))
