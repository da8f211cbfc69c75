"""What a job will cost, from the headers' facts alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.admission.execution import execution_of
from jobs.admission.workload import FIGURE_BYTES, bias_work, generation_seconds
from jobs.rows import Artifact, Job, JsonObject, Worker
from jobs.specs import BiasSpec, EvaluateSpec, PipelineSpec, Spec
from optipfair_engine.headers import Estimate, ModelFacts, estimate_prune, loaded_bytes

REPORT_BYTES = 4_000_000
"""Figures and tables of a job that writes no checkpoint."""


@dataclass(frozen=True)
class Cost:
    """A rough prediction: bytes of memory at the peak, bytes of artifacts, seconds on two ordinary cores."""

    peak_memory_bytes: int
    output_bytes: int
    seconds: float
    #: Of prunes: how they will be carried out, and why.
    execution: str | None = None
    reason: str | None = None
    #: Why it can't be carried out in any way, if it can't.
    problem: str | None = None


@dataclass(frozen=True)
class JobFacts:
    """An earlier job whose checkpoint is used."""

    job: Job
    metrics: JsonObject
    artifacts: list[Artifact]


def cost_of(
    kind: str,
    spec: Spec,
    facts: Sequence[JsonObject | None],
    suites: Mapping[str, JsonObject] | None = None,
    memory_bytes: int | None = None,
) -> Cost | None:
    """The cost of a job, or of all steps of a pipeline; None if a model's sizes are not known.

    `suites` says what the named suites hold (`{"kind", "items"}`). With the memory of a worker, prunes cost
    what they do in the way in which that worker would do them.
    """
    parts: list[tuple[str, Any]] = [(kind, spec)]
    if isinstance(spec, PipelineSpec):
        parts = [(step.kind, step.spec) for step in spec.steps]
    each = zip(parts, facts, strict=True)
    costs = [_cost(k, part, known, suites or {}, memory_bytes) for (k, part), known in each]
    known_costs = [cost for cost in costs if cost is not None]
    if len(known_costs) != len(costs):
        return None
    if not isinstance(spec, PipelineSpec):
        return known_costs[0]
    named = list(zip((step.name for step in spec.steps), known_costs, strict=True))
    # the step that is streamed says most of what the job needs; without one, any prune does
    told = sorted((n for n in named if n[1].execution), key=lambda n: n[1].execution != "streamed")
    return Cost(
        execution=told[0][1].execution if told else None,
        reason=f"step {told[0][0]}: {told[0][1].reason}" if told else None,
        problem=next((f"step {name}: {cost.problem}" for name, cost in named if cost.problem), None),
        peak_memory_bytes=max(cost.peak_memory_bytes for cost in known_costs),
        output_bytes=sum(cost.output_bytes for cost in known_costs),
        seconds=round(sum(cost.seconds for cost in known_costs), 1),
    )


def _cost(
    kind: str,
    spec: Any,
    known: JsonObject | None,
    suites: Mapping[str, JsonObject],
    memory_bytes: int | None,
) -> Cost | None:
    if not known:
        return None
    facts, plain = model_facts(known), spec.model_dump(mode="json")
    if kind == "prune":
        way = execution_of(spec, plain, facts, memory_bytes)
        need = way.estimate
        sizes = (need.peak_memory_bytes, need.output_bytes, need.seconds)
        return Cost(*sizes, way.execution, way.reason, way.problem)
    whole: Estimate = estimate_prune(facts, plain)
    models = 2 if getattr(spec, "baseline", None) is not None else 1
    memory = (
        whole.peak_memory_bytes
        - whole.output_bytes
        + (models - 1) * loaded_bytes(facts, getattr(spec, "dtype", None))
    )
    seconds, output = whole.seconds, REPORT_BYTES
    if isinstance(spec, BiasSpec):
        work = bias_work(spec, suites, int(known.get("num_layers") or 1))
        seconds += work.seconds(facts.parameters)
        output += work.figures * FIGURE_BYTES
        return Cost(memory, output, round(seconds * models - (models - 1) * work.drawing, 1))
    if isinstance(spec, EvaluateSpec):
        seconds += generation_seconds(spec, facts.parameters)
        if spec.dynamic is not None:  # the chosen neurons are copied
            memory += int(spec.dynamic.keep_percentage / 100 * loaded_bytes(facts, spec.dtype))
    return Cost(memory, output, round(seconds * models, 1))


def model_facts(known: JsonObject) -> ModelFacts:
    """The header reader's facts from their JSON, which a worker of another version may have written."""
    told = {name: value for name, value in known.items() if name in ModelFacts.__dataclass_fields__}
    return ModelFacts(**{**told, "architectures": tuple(known["architectures"])})


def facts_of_job(source: JobFacts, workers: Sequence[Worker], step: str | None = None) -> JsonObject | None:
    """The facts of a checkpoint that a job or step wrote: its own model's, with the sizes that came out."""
    spec = source.job.spec if step is None else spec_of_step(source.job, step) or {}
    before = "" if step is None else f"{step}."
    reference = spec.get("model", {})
    original = next(
        (m for w in workers for m in w.models if m.name == reference.get("name") and m.problem is None), None
    )
    if reference.get("source") != "local" or original is None:
        return None
    names = [item for item in source.artifacts if item.name.startswith(before)]
    size = sum(item.size for item in names if item.name.endswith(".safetensors"))
    parameters = int(source.metrics.get(f"{before}pruned_parameters") or original.facts["parameters"])
    layers = source.metrics.get(f"{before}final_layer_count") or original.facts.get("num_layers")
    sizes = {"bytes": size, "parameters": parameters, "num_layers": layers}
    return {**original.facts, **sizes, "format": "safetensors"}


def spec_of_step(job: Job, step: str) -> JsonObject | None:
    """The spec of a pipeline's prune step; None if the job has no such step."""
    steps = job.spec.get("steps", []) if job.kind == "pipeline" else []
    found = (item["spec"] for item in steps if item["name"] == step and item["kind"] == "prune")
    return next(found, None)
