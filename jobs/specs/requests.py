"""What a user may ask for: a kind of job with its spec, and what holds for every kind (labels, gates …)."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches
from typing import Annotated, Any, Literal, Self

from pydantic import (
    ConfigDict,
    Field,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from jobs.specs.kinds import (
    AnalyzeSpec,
    BiasSpec,
    EvaluateSpec,
    ImportanceSpec,
    PipelineSpec,
    model_references,
)
from jobs.specs.metrics import known_metrics
from jobs.specs.producing import fault_of_gate, reporting
from jobs.specs.prune import PruneSpec
from jobs.specs.references import StepModelRef
from optipfair_engine.options.base import Finite, Strict
from optipfair_engine.options.suites import metric_names

MAX_LABELS = 64
MAX_GATES = 32
MAX_TIMEOUT_SECONDS = 7 * 24 * 3600


class Gate(Strict):
    """A bound on one metric; an absent metric makes the check inconclusive, never a pass."""

    metric: Annotated[str, StringConstraints(min_length=1, max_length=160)]
    """The name of a metric, as docs/http.md lists them for each kind; of a step as step.metric."""
    min: Finite | None = None
    max: Finite | None = None

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if self.min is None and self.max is None:
            raise ValueError("give min or max")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError("min is greater than max")
        return self


LabelKey = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,127}$")]
LabelValue = Annotated[str, StringConstraints(max_length=128)]


class _Request(Strict):
    labels: Annotated[dict[LabelKey, LabelValue], Field(max_length=MAX_LABELS)] = Field(default_factory=dict)
    """Words of yours, to filter lists by."""
    priority: int = Field(default=0, ge=-100, le=100)
    """Higher ones start first among waiting jobs."""
    timeout_seconds: int | None = Field(default=None, ge=1, le=MAX_TIMEOUT_SECONDS)
    """How long it may run. Null: as long as the service says."""
    queue_timeout_seconds: int | None = Field(default=None, ge=1, le=MAX_TIMEOUT_SECONDS)
    """How long it may wait for its first start; then it expires. Null: for ever."""
    reuse: bool = False
    """Shares the result of an earlier job that did the same work, if there is one."""
    webhook_url: Annotated[str, StringConstraints(min_length=1, max_length=2048)] | None = None
    """Is sent a signed message when the job has ended."""
    gates: Annotated[list[Gate], Field(max_length=MAX_GATES)] = Field(default_factory=list)
    """What the result must hold; together they give the verdict."""

    @field_validator("labels")
    @classmethod
    def _printable(cls, labels: dict[str, str]) -> dict[str, str]:
        if any(not value.isprintable() for value in labels.values()):
            raise ValueError("a label holds a character that cannot be printed")
        return labels


class AnalyzeRequest(_Request):
    """Create an `analyze` job."""

    kind: Literal["analyze"]
    spec: AnalyzeSpec


class ImportanceRequest(_Request):
    """Create an `importance` job."""

    kind: Literal["importance"]
    spec: ImportanceSpec


class PruneRequest(_Request):
    """Create a `prune` job."""

    kind: Literal["prune"]
    spec: PruneSpec


class BiasRequest(_Request):
    """Create a `bias` job."""

    kind: Literal["bias"]
    spec: BiasSpec


class EvaluateRequest(_Request):
    """Create an `evaluate` job."""

    kind: Literal["evaluate"]
    spec: EvaluateSpec


class PipelineRequest(_Request):
    """Create a `pipeline` job."""

    kind: Literal["pipeline"]
    spec: PipelineSpec


def _gate_metrics(request: AnyRequest) -> frozenset[str]:
    """The metrics on which this request may set a gate, but for categories that only a suite's files name."""
    if not isinstance(request, PipelineRequest):
        return _named_metrics(request.kind, request.spec)
    steps = [(step.name, _named_metrics(step.kind, step.spec)) for step in request.spec.steps]
    return frozenset({name for step, metrics in steps for m in metrics for name in (m, f"{step}.{m}")})


def _named_metrics(kind: str, spec: Any) -> frozenset[str]:
    suites = getattr(spec, "suites", None) or ()
    return known_metrics(kind) | {name for suite in suites for name in metric_names(suite)}


def _faults(request: AnyRequest) -> Iterator[tuple[tuple[str | int, ...], str, object]]:
    """What only the whole request shows to be wrong: where in the body, why, and what stands there."""
    known = _gate_metrics(request)
    for number, gate in enumerate(request.gates):
        if not any(reporting(request.kind, request.spec, gate.metric)):
            near = ", ".join(get_close_matches(gate.metric, known))
            reason = f"unknown gate metric: a {request.kind} job does not report {gate.metric!r}"
            reason += f"; it does report {near}" if near else ""
            yield ("gates", number, "metric"), reason, gate.metric
        elif (fault := fault_of_gate(request.kind, request.spec, gate.metric)) is not None:
            yield ("gates", number, "metric"), fault, gate.metric
    if isinstance(request, PipelineRequest):
        return
    for where, ref in model_references(request.spec):
        if isinstance(ref, StepModelRef):
            yield ("spec", *where), 'a model with source "step" belongs into a pipeline', ref
    if isinstance(request, PruneRequest) and request.spec.layers_from is not None:
        reason = "layers_from names a step, and so belongs into a pipeline"
        yield ("spec", "layers_from"), reason, request.spec.layers_from


AnyRequest = (
    AnalyzeRequest | ImportanceRequest | PruneRequest | BiasRequest | EvaluateRequest | PipelineRequest
)
JobRequest = Annotated[AnyRequest, Field(discriminator="kind")]
"""The shape of the body of POST /v1/jobs; `parse_request` checks what a shape can't say, too."""

_ADAPTER: TypeAdapter[AnyRequest] = TypeAdapter(JobRequest, config=ConfigDict(defer_build=True))


def prepare() -> None:
    """Build what checks requests, for which the first of them would wait otherwise."""
    _ADAPTER.rebuild()


def parse_request(body: Any) -> AnyRequest:
    """A request from parsed JSON; raises pydantic's ValidationError with the fields' locations."""
    request = _ADAPTER.validate_python(body)
    details = [
        InitErrorDetails(
            type=PydanticCustomError("value_error", "{reason}", {"reason": why}), loc=at, input=given
        )
        for at, why, given in _faults(request)
    ]
    if details:
        raise ValidationError.from_exception_data("JobRequest", details)
    return request
