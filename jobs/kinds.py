"""One strict model for each kind of job. Field names and words are the guide's, as on the command line."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    Field,
    StringConstraints,
    model_validator,
)

from jobs.references import (
    MAX_PROMPTS,
    CalibrationRef,
    Component,
    Device,
    Dtype,
    Finite,
    JobId,
    LayerIndices,
    ModelRef,
    OpaqueName,
    Percentage,
    Prompt,
    PromptPairs,
    StepModelRef,
    StepName,
    Strict,
    TextRef,
)

MAX_STEPS = 16


class Healing(Strict):
    """A short distillation after pruning."""

    max_seconds: int = Field(ge=1, le=24 * 3600)


class Fairness(Strict):
    """Lets what a neuron says about an attribute weigh in the selection."""

    prompt_pairs: PromptPairs
    weight: Finite = Field(default=1.0, ge=0, le=100)


class PlanRef(Strict):
    """The plan of an earlier prune job, to be applied again."""

    job_id: JobId


class AnalyzeSpec(Strict):
    """Sizes and shapes of a model, from its files."""

    model: ModelRef


class ImportanceSpec(Strict):
    """How much each layer changes what passes through it."""

    model: ModelRef
    calibration: CalibrationRef
    layers_path: Annotated[str, StringConstraints(max_length=200, pattern=r"^\w+(\.\w+)*$")] | None = Field(
        default=None,
        description='Where the layers are, for a model with several stacks, as "encoder.block" of T5.',
    )
    dtype: Dtype = "auto"
    device: Device = "auto"


class PruneSpec(Strict):
    """A smaller checkpoint. Width and attention take exactly one size; depth takes a count or the layers."""

    model: ModelRef
    preset: Literal["guide", "recommended"] = "guide"
    pruning_type: Literal["MLP_GLU", "MLP", "DEPTH", "ATTENTION"] = "MLP_GLU"
    neuron_selection_method: Literal["MAW", "PPM", "VOW", "PON", "L2", "CFSP", "OBS"] = "MAW"
    tie_break: Literal["lower_index", "topk"] = "lower_index"
    pruning_percentage: Percentage | None = None
    expansion_rate: Finite | None = Field(default=None, gt=0, le=10_000)
    target_parameters: int | None = Field(default=None, ge=1)
    target_bytes: int | None = Field(default=None, ge=1)
    allocation: Literal["uniform", "allocated"] | None = None
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
    def _of_its_type(self) -> Self:
        width, kind = self.pruning_type in ("MLP_GLU", "MLP"), self.pruning_type
        foreign = {
            "num_layers_to_remove": kind != "DEPTH" and self.num_layers_to_remove is not None,
            "depth_pruning_percentage": kind != "DEPTH" and self.depth_pruning_percentage is not None,
            "layer_selection_method": kind != "DEPTH" and self.layer_selection_method != "last",
            "expansion_rate": not width and self.expansion_rate is not None,
            "expansion_divisor": not width and self.expansion_divisor is not None,
            "neuron_selection_method": not width and self.neuron_selection_method != "MAW",
            "tie_break": not width and self.tie_break != "lower_index",
            "attention_unit": kind != "ATTENTION" and self.attention_unit != "kv_group",
        }
        _refuse([name for name, given in foreign.items() if given], f'not with pruning_type "{kind}"')
        return self

    @model_validator(mode="after")
    def _ties(self) -> Self:
        by_scores = (
            self.compensation == "none" and self.allocation != "allocated" and self.preset != "recommended"
        )
        if self.tie_break != "lower_index" and not by_scores:
            raise ValueError('tie_break "topk": not with compensation, allocated widths or a preset')
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


Visualization = Literal["mean_diff", "heatmap", "pca"]


def _all_kinds() -> list[Visualization]:
    return ["mean_diff", "heatmap", "pca"]


class BiasSpec(Strict):
    """How differently a model treats prompts that differ in one attribute, optionally beside a baseline."""

    model: ModelRef
    baseline: ModelRef | None = None
    prompt_pairs: PromptPairs | None = None
    template: Annotated[str, StringConstraints(max_length=10_000, pattern=r"\{attribute\}")] | None = None
    attributes: Annotated[list[Prompt], Field(min_length=2, max_length=32)] | None = None
    suite: OpaqueName | None = None
    control_pairs: PromptPairs | None = None
    visualization_types: list[Visualization] = Field(default_factory=_all_kinds, max_length=3)
    layers: Literal["first_middle_last", "all"] | LayerIndices = "first_middle_last"
    layer_types: Annotated[list[Component], Field(min_length=1, max_length=6)] | None = None
    figure_format: Literal["png", "svg", "pdf"] = "png"
    neuron_ranking: bool = False
    margin: Annotated[Finite, Field(ge=0, le=10)] | None = Field(
        default=None,
        description="Change from the baseline that doesn't count: of the mean difference, relative "
        "(null: 0.05); of a preference suite's distance from one half (null: 0.02).",
    )
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


class EvaluateSpec(Strict):
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


class _Step(Strict):
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


class PipelineSpec(Strict):
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
