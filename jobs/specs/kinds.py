"""One strict model for each kind of job. Field names and words are the guide's, as on the command line.

The largest, `PruneSpec`, has a module of its own: `jobs.specs.prune`.
"""

from __future__ import annotations

from itertools import takewhile
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    Field,
    StringConstraints,
    model_validator,
)

from jobs.specs.prune import PruneSpec
from jobs.specs.references import (
    MAX_PROMPTS,
    CalibrationRef,
    Component,
    Device,
    LayerIndices,
    ModelRef,
    OfModel,
    OpaqueName,
    Prompt,
    PromptPairs,
    StepModelRef,
    StepName,
    TextRef,
    UploadRef,
)
from optipfair_engine.options.base import Strict, again
from optipfair_engine.options.bias import Bias
from optipfair_engine.options.evaluation import Evaluation, check_dynamic
from optipfair_engine.options.suites import SuiteName
from optipfair_engine.options.words import ComputeDtype, DType, Visualization

MAX_STEPS = 16


class AnalyzeSpec(OfModel):
    """Sizes and shapes of a model, from its files."""


class ImportanceSpec(OfModel):
    """How much each layer changes what passes through it."""

    calibration: CalibrationRef
    """Text whose tokens the layers see."""
    layers_path: Annotated[str, StringConstraints(max_length=200, pattern=r"^\w+(\.\w+)*$")] | None = Field(
        default=None,
        description='Where the layers are, for a model with several stacks, as "encoder.block" of T5.',
    )
    dtype: DType = "auto"
    device: Device = "auto"
    compute_dtype: ComputeDtype = Field(
        default="auto",
        description="What passes that measure are computed in; auto: the fastest here; checkpoint: its own.",
    )


def _different(words: list[str]) -> list[str]:
    """The words, if none is blank and no two are equal: those would make a pair of equal prompts."""
    known: set[str] = set()
    for word in (word.strip() for word in words):
        if not word:
            raise ValueError("an attribute is blank")
        if word in known:
            raise ValueError(f"{word!r} stands more than once, which would make a pair of equal prompts")
        known.add(word)
    return words


class BiasSpec(Bias, OfModel):
    """How differently a model treats prompts that differ in one attribute, optionally beside a baseline."""

    prompt_pairs: PromptPairs | None = again(Bias, "prompt_pairs")
    template: Annotated[str, StringConstraints(max_length=10_000, pattern=r"\{attribute\}")] | None = again(
        Bias, "template"
    )
    attributes: (
        Annotated[list[Prompt], Field(min_length=2, max_length=32), AfterValidator(_different)] | None
    ) = again(Bias, "attributes")
    suite: OpaqueName | UploadRef | None = again(Bias, "suite")  # type: ignore[assignment]  # a reference
    suites: Annotated[list[SuiteName], Field(min_length=1, max_length=16)] | None = again(Bias, "suites")
    control_pairs: PromptPairs | None = again(Bias, "control_pairs")
    visualization_types: Annotated[list[Visualization], Field(max_length=3)] | None = again(
        Bias, "visualization_types"
    )
    layers: Literal["first_middle_last", "all"] | LayerIndices = again(Bias, "layers")
    layer_types: Annotated[list[Component], Field(min_length=1, max_length=6)] | None = again(
        Bias, "layer_types"
    )
    device: Device = again(Bias, "device")

    baseline: ModelRef | None = None
    """Another model that this one is compared with, on the same prompts."""

    def check(self) -> None:
        """Refuse what doesn't go together, and a margin of nothing."""
        if self.margin is not None and self.baseline is None:
            raise ValueError("margin: of a change from a baseline; give baseline too, or leave margin out")
        super().check()


class EvaluateSpec(Evaluation, OfModel):
    """Perplexity, speed, and the comparison with a baseline."""

    baseline: ModelRef | None = None
    """Another model, evaluated beside it."""
    text: TextRef | None = None
    """Text that perplexity is measured on."""
    prompts: Annotated[list[Prompt], Field(min_length=1, max_length=MAX_PROMPTS)] | None = None
    """Prompts to continue."""
    timing: bool = False
    """Measures the speed of generation."""
    max_length: Annotated[int, Field(ge=2, le=32_768)] | None = Field(
        default=None,
        description="Deprecated: write text.max_length.",
        json_schema_extra={"deprecated": True},
    )
    max_new_tokens: int = Field(default=50, ge=1, le=2048)
    """Tokens to generate for each prompt."""
    dtype: DType = "auto"
    device: Device = "auto"
    compute_dtype: ComputeDtype = Field(
        default="auto",
        description="What passes that measure are computed in; auto: the fastest here; checkpoint: its own.",
    )

    @model_validator(mode="before")
    @classmethod
    def _length_of_text(cls, given: Any) -> Any:
        """Hand the length of windows to the text where it stands beside it, as it once did."""
        text = given.get("text") if isinstance(given, dict) else None
        if not isinstance(text, dict) or given.get("max_length") is None:
            return given
        return {**given, "text": {"max_length": given["max_length"], **text}}

    @model_validator(mode="after")
    def _something(self) -> Self:
        if self.max_length is not None and (self.text is None or self.text.max_length != self.max_length):
            said = "which is not given" if self.text is None else f"which says {self.text.max_length}"
            raise ValueError(f"max_length is the length of text's windows: write text.max_length, {said}")
        if self.text is None and self.prompts is None and not self.timing:
            raise ValueError("give text, prompts or timing: otherwise there is nothing to evaluate")
        generates = self.prompts is not None or self.timing
        check_dynamic(
            self.dynamic,
            window=self.text.max_length if self.text is not None else None,
            new_tokens=self.max_new_tokens if generates else None,
        )
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
            if isinstance(step.spec, PruneSpec) and step.spec.layers_from is not None:
                self._check_importance_of(step.name, step.spec)
            for ref in step_references(step.spec):
                if makers.get(ref) != "prune":
                    raise ValueError(f"step {step.name!r}: no earlier prune step is named {ref!r}")
            makers[step.name] = step.kind
        return self

    def _check_importance_of(self, name: str, spec: PruneSpec) -> None:
        """Refuse layers_from unless it names an earlier importance step of the same model."""
        earlier = takewhile(lambda step: step.name != name, self.steps)
        wanted = spec.layers_from.name if spec.layers_from is not None else ""
        found = next((s for s in earlier if s.name == wanted and isinstance(s.spec, ImportanceSpec)), None)
        if found is None:
            raise ValueError(f"step {name!r}: no earlier importance step is named {wanted!r}")
        if found.spec.model != spec.model:
            raise ValueError(f"step {name!r}: step {wanted!r} measured the layers of another model")


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
    return SPECS[kind].model_validate(_as_of_now(kind, spec))


def _as_of_now(kind: str, spec: dict[str, Any]) -> dict[str, Any]:
    """A stored spec in today's words: the length of windows once stood beside the text of `evaluate`.

    It stood there with its default too, where there was no text; so nothing of it is refused here.
    """
    if kind == "pipeline":
        steps = [{**step, "spec": _as_of_now(step["kind"], step["spec"])} for step in spec["steps"]]
        return {**spec, "steps": steps}
    if kind != "evaluate" or spec.get("max_length") is None:
        return spec
    rest = {name: value for name, value in spec.items() if name != "max_length"}
    text = rest.get("text")
    return {**rest, "text": text and {"max_length": spec["max_length"], **text}}


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


def upload_references(spec: BaseModel) -> list[tuple[tuple[str | int, ...], str, str]]:
    """Every upload that a spec names: its location in the spec, its id, the kind that it must have."""
    if isinstance(spec, PipelineSpec):
        return [
            (("steps", i, "spec", *where), upload_id, kind)
            for i, step in enumerate(spec.steps)
            for where, upload_id, kind in upload_references(step.spec)
        ]
    found = [(where, ref.id, "model") for where, ref in model_references(spec) if isinstance(ref, UploadRef)]
    for name in ("calibration", "evaluation", "text"):
        part = getattr(spec, name, None)
        if part is not None and part.id is not None:
            found.append(((name,), part.id, "calibration"))
    suite = getattr(spec, "suite", None)
    if isinstance(suite, UploadRef):
        found.append((("suite",), suite.id, "suite"))
    return found


def step_references(spec: BaseModel) -> list[str]:
    """The names of the steps whose models a spec refers to."""
    return [ref.name for _, ref in model_references(spec) if isinstance(ref, StepModelRef)]
