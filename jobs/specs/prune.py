"""What a prune job may ask for, and which of its fields go together.

Whatever the engine would refuse or leave aside is refused here, before anything is queued. The rules look at
values alone: a stored spec has every default spelled out.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from jobs.specs.references import (
    CalibrationRef,
    Device,
    Dtype,
    Finite,
    JobId,
    LayerIndices,
    ModelRef,
    Percentage,
    PromptPairs,
    Strict,
    TextRef,
    names_given,
)

SIZES = ("pruning_percentage", "expansion_rate", "target_parameters", "target_bytes")
DEPTH_SIZES = ("num_layers_to_remove", "depth_pruning_percentage", "layer_indices")

TargetSize = Annotated[int, Field(ge=1, lt=2**63)]


class Healing(Strict):
    """A short distillation after pruning."""

    max_seconds: int = Field(ge=1, le=24 * 3600)
    """How long the result is distilled from the original, at most."""


class Fairness(Strict):
    """Lets what a neuron says about an attribute weigh in the selection."""

    prompt_pairs: PromptPairs
    """Pairs of prompts that differ in the attribute: what reacts to the difference goes first."""
    weight: Finite = Field(default=1.0, ge=0, le=100)
    """How much that weighs against what a neuron is of use; 0: not at all."""


class PlanRef(Strict):
    """The plan of an earlier prune job, to be applied again."""

    job_id: JobId


class PruneSpec(Strict):
    """A smaller checkpoint. Width and attention take exactly one size; depth takes a count or the layers."""

    model: ModelRef
    preset: Literal["guide", "recommended"] = "guide"
    """guide: as the other fields say; recommended: what measured best, with calibration or without."""
    pruning_type: Literal["MLP_GLU", "MLP", "DEPTH", "ATTENTION"] = "MLP_GLU"
    """Neurons of gated (MLP_GLU) or plain (MLP) blocks, whole layers (DEPTH), or heads (ATTENTION)."""
    neuron_selection_method: Literal["MAW", "PPM", "VOW", "PON", "L2", "CFSP", "OBS"] = "MAW"
    """How neurons are scored (see docs/glossary.md); CFSP and OBS need calibration."""
    tie_break: Literal["lower_index", "topk"] = "lower_index"
    """Which of equally scored neurons stay; topk: those that optipfair 0.4.2 keeps."""
    pruning_percentage: Percentage | None = None
    """Per cent of neurons, heads or KV groups that go."""
    expansion_rate: Finite | None = Field(default=None, gt=0, le=10_000)
    """The size that stays: intermediate_size in per cent of hidden_size."""
    target_parameters: TargetSize | None = None
    """The size that stays: at most so many parameters of the whole model."""
    target_bytes: TargetSize | None = None
    """The size that stays: at most so many bytes of weights."""
    allocation: Literal["uniform", "allocated"] | None = None
    """One width for all layers, or by importance. Null: uniform, with the preset allocated."""
    expansion_divisor: Literal[32, 64, 128, 256] | None = None
    """Rounds intermediate_size to a multiple."""
    layer_indices: LayerIndices | None = None
    """The layers to remove (DEPTH), or the only ones to prune. Null: all."""
    num_layers_to_remove: int | None = Field(default=None, ge=1, lt=10_000)
    """How many layers go (DEPTH)."""
    depth_pruning_percentage: Annotated[Finite, Field(gt=0, lt=100)] | None = None
    """Per cent of layers that go (DEPTH)."""
    layer_selection_method: Literal["last", "first", "custom", "importance", "greedy_perplexity"] = "last"
    """Which layers go (DEPTH): the last, the first, layer_indices, or, by calibration, those of least use."""
    attention_unit: Literal["kv_group", "query_head"] = "kv_group"
    """Whole KV groups, or query heads evenly from each group (ATTENTION)."""
    calibration: CalibrationRef | None = None
    """Text that activations are measured on; healing distils on it, too."""
    compensation: Literal["none", "least_squares"] = "none"
    """Whether the weights behind what goes are refitted; least_squares needs calibration."""
    healing: Healing | None = None
    """A short distillation from the original afterwards."""
    evaluation: TextRef | None = None
    """Text that perplexity before and after is measured on."""
    fairness: Fairness | None = None
    """Lets neurons go first that react to an attribute; needs calibration."""
    plan: PlanRef | None = None
    """Applies the plan of an earlier prune job, at its size or another."""
    keep_statistics: bool = False
    """Keeps what a refit at another size needs, for a later job with plan."""
    dtype: Dtype = "auto"
    """Number type that the model is loaded and saved in; auto: the checkpoint's."""
    device: Device = "auto"
    """auto: what the worker has."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Of healing and fairness."""

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        _check_sizes(self)
        _check_type(self)
        if self.plan is not None:
            _check_beside_plan(self)
        _check_needs(self)
        if self.plan is None:
            _check_ties(self)
            _check_fairness(self)
            _check_calibration_is_used(self)
            _check_statistics(self)
        return self

    @property
    def prunes_neurons(self) -> bool:
        """Whether intermediate neurons go (rather than layers or heads)."""
        return self.pruning_type in ("MLP_GLU", "MLP")

    @property
    def refits(self) -> bool:
        """Whether what stays is refitted, because it is asked for or by the preset."""
        by_preset = self.preset == "recommended" and self.calibration is not None
        return by_preset or self.compensation == "least_squares"


def _check_sizes(spec: PruneSpec) -> None:
    """Exactly one size, or none beside a plan, which has its own."""
    wanted = DEPTH_SIZES if spec.pruning_type == "DEPTH" else SIZES
    given = [name for name in wanted if getattr(spec, name) is not None]
    if len(given) != 1 and not (spec.plan is not None and not given):
        raise ValueError(f"give exactly one of {', '.join(wanted)}" + names_given(given))


def _check_type(spec: PruneSpec) -> None:
    """Fields that belong to another pruning type."""
    depth, width = spec.pruning_type == "DEPTH", spec.prunes_neurons
    foreign = {
        **dict.fromkeys(SIZES, depth),
        **dict.fromkeys(("num_layers_to_remove", "depth_pruning_percentage"), not depth),
        "layer_selection_method": not depth,
        **dict.fromkeys(("expansion_rate", "expansion_divisor"), not width),
        **dict.fromkeys(("neuron_selection_method", "tie_break", "fairness"), not width),
        "attention_unit": spec.pruning_type != "ATTENTION",
    }
    names = [name for name, refused in foreign.items() if refused and _is_chosen(spec, name)]
    if not width and spec.allocation == "allocated":
        names.append('allocation "allocated"')
    _refuse(names, f'not with pruning_type "{spec.pruning_type}"')
    method = spec.layer_selection_method
    # "last" is the default, and as good as "custom" where the layers are named
    if spec.layer_indices is not None and method not in ("last", "custom"):
        raise ValueError(f'layer_selection_method "{method}" chooses layers itself: not with layer_indices')
    if method == "custom" and spec.layer_indices is None:
        raise ValueError('layer_selection_method "custom" takes layer_indices')


def _check_needs(spec: PruneSpec) -> None:
    """What can't be done without calibration text, whatever the preset."""
    needy = {
        'neuron_selection_method "CFSP"': spec.neuron_selection_method == "CFSP",
        'neuron_selection_method "OBS"': spec.neuron_selection_method == "OBS",
        'compensation "least_squares"': spec.compensation == "least_squares",
        'allocation "allocated"': spec.allocation == "allocated" and spec.plan is None,
        f'layer_selection_method "{spec.layer_selection_method}"': _selects_layers_by_text(spec),
        "healing": spec.healing is not None,
        "fairness": spec.fairness is not None,
    }
    if spec.calibration is None:
        _refuse([name for name, needed in needy.items() if needed], "needs calibration")
    if spec.neuron_selection_method == "OBS" and not spec.refits:
        raise ValueError('neuron_selection_method "OBS" works only with compensation "least_squares"')


def _check_ties(spec: PruneSpec) -> None:
    by_scores = spec.compensation == "none" and spec.allocation != "allocated" and spec.fairness is None
    if spec.tie_break != "lower_index" and (spec.preset == "recommended" or not by_scores):
        raise ValueError('tie_break "topk": not with compensation, allocated widths, fairness or a preset')


def _check_fairness(spec: PruneSpec) -> None:
    """Neurons are then ranked by utility and bias, which leaves no say to a method or to ties."""
    if spec.fairness is not None:
        names = [name for name in ("neuron_selection_method", "tie_break") if _is_chosen(spec, name)]
        _refuse(names, "not with fairness, which ranks neurons by utility and bias")


def _check_calibration_is_used(spec: PruneSpec) -> None:
    """Without a refit only some ways of choosing look at text; healing distils on it whatever was chosen."""
    if spec.calibration is None or spec.refits or spec.fairness is not None or spec.healing is not None:
        return
    if not spec.prunes_neurons and not _selects_layers_by_text(spec):
        raise ValueError(
            f'calibration: pruning_type "{spec.pruning_type}" chooses by weights; '
            'give compensation "least_squares" too, or leave calibration out'
        )
    if spec.neuron_selection_method in ("VOW", "PON", "L2"):
        raise ValueError(
            f'calibration: neuron_selection_method "{spec.neuron_selection_method}" chooses by weights; '
            'take "MAW", "PPM" or "CFSP", give compensation "least_squares" too, or leave calibration out'
        )


def _check_statistics(spec: PruneSpec) -> None:
    gathered = spec.refits or spec.allocation == "allocated" or spec.fairness is not None
    if spec.keep_statistics and (spec.pruning_type == "DEPTH" or not gathered):
        raise ValueError(
            "keep_statistics keeps what a refit of neurons or heads measured: it needs compensation "
            '"least_squares" or allocation "allocated", and no pruning_type "DEPTH"'
        )


def _check_beside_plan(spec: PruneSpec) -> None:
    """A plan says what goes and how; another size, divisor or allocation, and healing, can be asked for."""
    settled = (
        *("preset", "neuron_selection_method", "tie_break", "compensation", "attention_unit"),
        *("layer_indices", "num_layers_to_remove", "depth_pruning_percentage", "layer_selection_method"),
        *("fairness", "keep_statistics"),
    )
    _refuse([name for name in settled if _is_chosen(spec, name)], "not beside plan, which settles it")
    if spec.calibration is not None and spec.healing is None:
        raise ValueError("calibration: beside plan it is used for healing only")


def _selects_layers_by_text(spec: PruneSpec) -> bool:
    return spec.layer_selection_method in ("importance", "greedy_perplexity")


def _is_chosen(spec: PruneSpec, name: str) -> bool:
    """Whether a field differs from its default."""
    return bool(getattr(spec, name) != PruneSpec.model_fields[name].default)


def _refuse(names: list[str], reason: str) -> None:
    if names:
        raise ValueError(f"{', '.join(names)}: {reason}")
