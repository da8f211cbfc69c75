"""What a user may ask for: one strict pydantic model per kind of job, discriminated by `kind`.

Field names and words are the guide's, the same as on the command line (there with dashes). Unknown fields
are errors, numbers are strict (no numeric strings, no bools), and everything is bounded.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    TypeAdapter,
    field_validator,
    model_validator,
)

from jobs.ids import is_id
from jobs.metrics import known_metrics

MAX_TEXTS = 4096
MAX_TEXT_LENGTH = 100_000
MAX_PROMPTS = 256
MAX_LABELS = 64
MAX_STEPS = 16
MAX_GATES = 32
MAX_TIMEOUT_SECONDS = 7 * 24 * 3600

Device = Literal["auto", "cpu", "cuda"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Component = Literal["attention_output", "mlp_output", "gate_proj", "up_proj", "down_proj", "input_norm"]


def _job_id(value: str) -> str:
    if not is_id(value):
        raise ValueError("is not the id of a job")
    return value


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError("is not a finite number")
    return value


OpaqueName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
HubId = Annotated[
    str,
    StringConstraints(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,95}(\.[A-Za-z0-9_-]+)*(/[A-Za-z0-9][A-Za-z0-9_-]{0,95}(\.[A-Za-z0-9_-]+)*)?$",
        max_length=200,
    ),
]
Revision = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{40}$")]
JobId = Annotated[str, AfterValidator(_job_id)]
StepName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,31}$")]
Finite = Annotated[float, AfterValidator(_finite)]
Text_ = Annotated[str, StringConstraints(min_length=1, max_length=MAX_TEXT_LENGTH)]
Texts = Annotated[list[Text_], Field(min_length=1, max_length=MAX_TEXTS)]
Prompt = Annotated[str, StringConstraints(min_length=1, max_length=10_000)]
PromptPair = Annotated[list[Prompt], Field(min_length=2, max_length=2)]
PromptPairs = Annotated[list[PromptPair], Field(min_length=1, max_length=MAX_PROMPTS)]
LayerIndices = Annotated[list[Annotated[int, Field(ge=0, lt=10_000)]], Field(min_length=1, max_length=10_000)]
Percentage = Annotated[Finite, Field(ge=0, lt=100)]


class _Strict(BaseModel):
    """No unknown field, no conversion between types, no change after validation."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class LocalModelRef(_Strict):
    """A model in the workers' models folder, by its opaque name."""

    source: Literal["local"]
    name: OpaqueName


class HubModelRef(_Strict):
    """A model on the hub at a pinned commit."""

    source: Literal["hub"]
    id: HubId
    revision: Revision


class JobModelRef(_Strict):
    """The checkpoint that an earlier job of the same tenant wrote."""

    source: Literal["job"]
    job_id: JobId


class StepModelRef(_Strict):
    """The checkpoint that an earlier step of the same pipeline wrote."""

    source: Literal["step"]
    name: StepName


ModelRef = Annotated[LocalModelRef | HubModelRef | JobModelRef | StepModelRef, Field(discriminator="source")]


class CalibrationRef(_Strict):
    """Text to calibrate on: `texts`, or a named local file, or a hub dataset; exactly one."""

    texts: Texts | None = None
    source: Literal["local", "hub"] | None = None
    name: OpaqueName | None = None
    dataset: HubId | None = None
    max_length: int = Field(default=512, ge=1, le=32_768)
    batch_size: int = Field(default=8, ge=1, le=256)
    num_samples: int = Field(default=128, ge=1, le=100_000)

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        given = (self.texts is not None, self.source, self.name is not None, self.dataset is not None)
        allowed = {
            (True, None, False, False),
            (False, "local", True, False),
            (False, "hub", False, True),
        }
        if given not in allowed:
            raise ValueError('give texts, or source "local" with name, or source "hub" with dataset')
        return self


class TextRef(_Strict):
    """Text to measure on: `texts`, or a named local file."""

    texts: Texts | None = None
    source: Literal["local"] | None = None
    name: OpaqueName | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.texts is None) == (self.source is None) or (self.source is None) != (self.name is None):
            raise ValueError('give texts, or source "local" with name')
        return self


class Healing(_Strict):
    """A short distillation after pruning."""

    max_seconds: int = Field(ge=1, le=24 * 3600)


class Fairness(_Strict):
    """Lets what a neuron says about an attribute weigh in the selection."""

    prompt_pairs: PromptPairs
    weight: Finite = Field(default=1.0, ge=0, le=100)


class PlanRef(_Strict):
    """The plan of an earlier prune job, to be applied again."""

    job_id: JobId


class AnalyzeSpec(_Strict):
    """Sizes and shapes of a model, from its files."""

    model: ModelRef


class ImportanceSpec(_Strict):
    """How much each layer changes what passes through it."""

    model: ModelRef
    calibration: CalibrationRef
    dtype: Dtype = "auto"
    device: Device = "auto"


class PruneSpec(_Strict):
    """A smaller checkpoint. Width and attention take exactly one size; depth takes a count or the layers."""

    model: ModelRef
    preset: Literal["guide", "recommended"] = "guide"
    pruning_type: Literal["MLP_GLU", "MLP", "DEPTH", "ATTENTION"] = "MLP_GLU"
    neuron_selection_method: Literal["MAW", "PPM", "VOW", "PON", "L2", "CFSP", "OBS"] = "MAW"
    pruning_percentage: Percentage | None = None
    expansion_rate: Finite | None = Field(default=None, gt=0, le=10_000)
    target_parameters: int | None = Field(default=None, ge=1)
    target_bytes: int | None = Field(default=None, ge=1)
    allocation: Literal["uniform", "allocated"] = "uniform"
    expansion_divisor: Literal[32, 64, 128, 256] | None = None
    layer_indices: LayerIndices | None = None
    num_layers_to_remove: int | None = Field(default=None, ge=1, lt=10_000)
    depth_pruning_percentage: Percentage | None = None
    layer_selection_method: Literal["last", "first", "custom", "importance", "greedy_perplexity"] = "last"
    attention_unit: Literal["kv_group", "query_head"] = "kv_group"
    calibration: CalibrationRef | None = None
    compensation: Literal["none", "least_squares"] = "none"
    healing: Healing | None = None
    evaluation: TextRef | None = None
    fairness: Fairness | None = None
    plan: PlanRef | None = None
    keep_statistics: bool = False
    dtype: Dtype = "auto"
    device: Device = "auto"
    seed: int = Field(default=0, ge=0, lt=2**32)

    @model_validator(mode="after")
    def _sizes(self) -> Self:
        sizes = ("pruning_percentage", "expansion_rate", "target_parameters", "target_bytes")
        given = [name for name in sizes if getattr(self, name) is not None]
        if self.pruning_type == "DEPTH":
            _refuse(given, 'pruning_type "DEPTH" takes num_layers_to_remove or depth_pruning_percentage')
            self._depth_size()
        elif len(given) != 1 and not (self.plan is not None and not given):
            raise ValueError(f"give exactly one of {', '.join(sizes)}" + _given(given))
        return self

    def _depth_size(self) -> None:
        names = ("num_layers_to_remove", "depth_pruning_percentage", "layer_indices")
        given = [name for name in names if getattr(self, name) is not None]
        if len(given) != 1 and not (self.plan is not None and not given):
            raise ValueError(f"give exactly one of {', '.join(names)}" + _given(given))
        if self.layer_selection_method == "custom" and given == ["num_layers_to_remove"]:
            raise ValueError('layer_selection_method "custom" takes layer_indices')

    @model_validator(mode="after")
    def _width_only(self) -> Self:
        if self.pruning_type != "DEPTH":
            depth = ("num_layers_to_remove", "depth_pruning_percentage")
            _refuse([n for n in depth if getattr(self, n) is not None], 'this needs pruning_type "DEPTH"')
        if self.expansion_rate is not None and self.pruning_type == "ATTENTION":
            raise ValueError("expansion_rate is about the MLP, not about attention")
        if self.expansion_divisor is not None and self.pruning_type not in ("MLP_GLU", "MLP"):
            raise ValueError("expansion_divisor is about the MLP's width")
        return self

    @model_validator(mode="after")
    def _needs_calibration(self) -> Self:
        if self.preset == "recommended" or self.plan is not None:
            return self  # the preset brings its own calibration, a plan needs none
        for field, value in (
            ("neuron_selection_method", "CFSP"),
            ("neuron_selection_method", "OBS"),
            ("compensation", "least_squares"),
            ("allocation", "allocated"),
            ("layer_selection_method", "importance"),
            ("layer_selection_method", "greedy_perplexity"),
        ):
            if getattr(self, field) == value and self.calibration is None:
                raise ValueError(f'{field} "{value}" needs calibration')
        if self.neuron_selection_method == "OBS" and self.compensation != "least_squares":
            raise ValueError('neuron_selection_method "OBS" works only with compensation "least_squares"')
        return self


class BiasSpec(_Strict):
    """How differently a model treats prompts that differ in one attribute, optionally beside a baseline."""

    model: ModelRef
    baseline: ModelRef | None = None
    prompt_pairs: PromptPairs | None = None
    template: Annotated[str, StringConstraints(max_length=10_000, pattern=r"\{attribute\}")] | None = None
    attributes: Annotated[list[Prompt], Field(min_length=2, max_length=32)] | None = None
    suite: OpaqueName | None = None
    control_pairs: PromptPairs | None = None
    visualization_types: Annotated[
        list[Literal["mean_diff", "heatmap", "pca"]], Field(min_length=1, max_length=3)
    ] = ["mean_diff", "heatmap", "pca"]
    layers: Literal["first_middle_last", "all"] | LayerIndices = "first_middle_last"
    layer_types: Annotated[list[Component], Field(min_length=1, max_length=6)] | None = None
    figure_format: Literal["png", "svg", "pdf"] = "png"
    neuron_ranking: bool = False
    dtype: Dtype = "auto"
    device: Device = "auto"
    seed: int = Field(default=0, ge=0, lt=2**32)

    @model_validator(mode="after")
    def _one_prompt_source(self) -> Self:
        if (self.template is None) != (self.attributes is None):
            raise ValueError("template and attributes belong together")
        given = [n for n in ("prompt_pairs", "template", "suite") if getattr(self, n) is not None]
        if len(given) > 1:
            raise ValueError(
                "give at most one of prompt_pairs, template with attributes, suite" + _given(given)
            )
        return self


class EvaluateSpec(_Strict):
    """Perplexity, speed, and the comparison with a baseline."""

    model: ModelRef
    baseline: ModelRef | None = None
    text: TextRef | None = None
    prompts: Annotated[list[Prompt], Field(min_length=1, max_length=MAX_PROMPTS)] | None = None
    timing: bool = False
    max_length: int = Field(default=512, ge=2, le=32_768)
    max_new_tokens: int = Field(default=50, ge=1, le=2048)
    dtype: Dtype = "auto"
    device: Device = "auto"

    @model_validator(mode="after")
    def _something(self) -> Self:
        if self.text is None and self.prompts is None and not self.timing:
            raise ValueError("give text, prompts or timing: otherwise there is nothing to evaluate")
        return self


class _Step(_Strict):
    name: StepName


class AnalyzeStep(_Step):
    """A step that analyzes."""

    kind: Literal["analyze"]
    spec: AnalyzeSpec


class ImportanceStep(_Step):
    """A step that measures the importance of layers."""

    kind: Literal["importance"]
    spec: ImportanceSpec


class PruneStep(_Step):
    """A step that prunes."""

    kind: Literal["prune"]
    spec: PruneSpec


class BiasStep(_Step):
    """A step that measures bias."""

    kind: Literal["bias"]
    spec: BiasSpec


class EvaluateStep(_Step):
    """A step that evaluates."""

    kind: Literal["evaluate"]
    spec: EvaluateSpec


Step = Annotated[
    AnalyzeStep | ImportanceStep | PruneStep | BiasStep | EvaluateStep, Field(discriminator="kind")
]


class PipelineSpec(_Strict):
    """Several steps in one job; artifacts are named `step.file`."""

    steps: Annotated[list[Step], Field(min_length=1, max_length=MAX_STEPS)]

    @model_validator(mode="after")
    def _steps_refer_back(self) -> Self:
        makers: dict[str, str] = {}
        for step in self.steps:
            if step.name in makers:
                raise ValueError(f"two steps are named {step.name!r}")
            for ref in step_references(step.spec):
                if makers.get(ref) != "prune":
                    raise ValueError(f"step {step.name!r}: no earlier prune step is named {ref!r}")
            makers[step.name] = step.kind
        return self


class Gate(_Strict):
    """A bound on one metric; an absent metric makes the check inconclusive, never a pass."""

    metric: Annotated[str, StringConstraints(min_length=1, max_length=160)]
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


class _Request(_Strict):
    labels: Annotated[dict[LabelKey, LabelValue], Field(max_length=MAX_LABELS)] = Field(default_factory=dict)
    priority: int = Field(default=0, ge=-100, le=100)
    timeout_seconds: int | None = Field(default=None, ge=1, le=MAX_TIMEOUT_SECONDS)
    queue_timeout_seconds: int | None = Field(default=None, ge=1, le=MAX_TIMEOUT_SECONDS)
    reuse: bool = False
    webhook_url: Annotated[str, StringConstraints(min_length=1, max_length=2048)] | None = None
    gates: Annotated[list[Gate], Field(max_length=MAX_GATES)] = Field(default_factory=list)

    @field_validator("labels")
    @classmethod
    def _printable(cls, labels: dict[str, str]) -> dict[str, str]:
        if any(not value.isprintable() for value in labels.values()):
            raise ValueError("a label holds a character that cannot be printed")
        return labels

    def check_gates(self, known: frozenset[str]) -> None:
        """Raise ValueError for a gate on a metric that this kind of job does not have."""
        unknown = sorted({gate.metric for gate in self.gates} - known)
        if unknown:
            raise ValueError(f"unknown gate metric: {', '.join(unknown)}")


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


def _check_request(request: AnyRequest) -> AnyRequest:
    if isinstance(request, PipelineRequest):
        steps = [(step.name, step.kind) for step in request.spec.steps]
        names = {f"{name}.{m}" for name, kind in steps for m in known_metrics(kind)}
        request.check_gates(frozenset(names | {m for _, kind in steps for m in known_metrics(kind)}))
        return request
    request.check_gates(known_metrics(request.kind))
    if any(step_references(request.spec)):
        raise ValueError('a model with source "step" belongs into a pipeline')
    return request


AnyRequest = (
    AnalyzeRequest | ImportanceRequest | PruneRequest | BiasRequest | EvaluateRequest | PipelineRequest
)
JobRequest = Annotated[AnyRequest, Field(discriminator="kind"), AfterValidator(_check_request)]
"""The body of POST /v1/jobs: use it as FastAPI's body type or through `parse_request`."""

SPECS: dict[str, type[BaseModel]] = {
    "analyze": AnalyzeSpec,
    "importance": ImportanceSpec,
    "prune": PruneSpec,
    "bias": BiasSpec,
    "evaluate": EvaluateSpec,
    "pipeline": PipelineSpec,
}
KINDS = tuple(SPECS)
Spec = AnalyzeSpec | ImportanceSpec | PruneSpec | BiasSpec | EvaluateSpec | PipelineSpec

_ADAPTER: TypeAdapter[AnyRequest] = TypeAdapter(JobRequest)


def parse_request(body: Any) -> AnyRequest:
    """A request from parsed JSON; raises pydantic's ValidationError with the fields' locations."""
    return _ADAPTER.validate_python(body)


def parse_spec(kind: str, spec: dict[str, Any]) -> Any:
    """A stored spec as its model again (the worker's way in)."""
    return SPECS[kind].model_validate(spec)


def spec_to_json(spec: BaseModel) -> dict[str, Any]:
    """A spec as plain JSON with every default spelled out, so that later defaults do not change old jobs."""
    return spec.model_dump(mode="json")


def model_references(spec: BaseModel) -> list[tuple[tuple[str | int, ...], Any]]:
    """Every model that a spec names, each with its location within the spec."""
    if isinstance(spec, PipelineSpec):
        return [
            (("steps", i, "spec", *where), ref)
            for i, step in enumerate(spec.steps)
            for where, ref in model_references(step.spec)
        ]
    found = [((name,), getattr(spec, name, None)) for name in ("model", "baseline")]
    return [(where, ref) for where, ref in found if ref is not None]


def step_references(spec: BaseModel) -> list[str]:
    """The names of the steps whose models a spec refers to."""
    return [ref.name for _, ref in model_references(spec) if isinstance(ref, StepModelRef)]


def _given(names: list[str]) -> str:
    return f" ({', '.join(names)} given)" if names else ""


def _refuse(names: list[str], reason: str) -> None:
    if names:
        raise ValueError(f"{', '.join(names)}: {reason}")
