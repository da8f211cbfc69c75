"""The options of a pruning, each declared once: type, bounds, default, and a sentence of help.

From `Prune` follow the spec of a prune job, the options of ``optipfair prune``, the OpenAPI document, what
``prune_model`` takes, and what the engine reads. What goes together stands in ``options.rules``.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Annotated, Any

from pydantic import Field

from optipfair_engine.options.base import (
    About,
    Count,
    Finite,
    Percentage,
    Seed,
    Strict,
)
from optipfair_engine.options.calibration import CALIBRATION
from optipfair_engine.options.words import (
    Allocation,
    AttentionUnit,
    Compensation,
    ComputeDtype,
    DType,
    Execution,
    ExpansionDivisor,
    ExpertSelectionMethod,
    Export,
    FairnessBy,
    LayerSelectionMethod,
    NeuronSelectionMethod,
    Preset,
    PruningType,
    TieBreak,
    VerifyLevel,
)

#: The guide's percentage where no size is given at all.
DEFAULT_PERCENTAGE = 10

_WHAT, _SIZE, _RUN = "What is pruned", "How much goes", "Running"
_WIDTH, _DEPTH, _HEADS, _EXPERTS = ("MLP_GLU", "MLP"), ("DEPTH",), ("ATTENTION",), ("EXPERTS",)
_BY_SHARE, _BY_LAYER = (*_WIDTH, *_HEADS, *_EXPERTS), (*_WIDTH, *_DEPTH, *_HEADS)


class Healing(Strict):
    """A short distillation after pruning."""

    max_seconds: Annotated[float, Field(gt=0), About(flag="--healing-seconds")]
    """How long the result is distilled from the original, at most."""


class Search(Strict):
    """A search for the widths of layers."""

    max_seconds: Annotated[float, Field(gt=0), About(flag="--search-seconds")]
    """How long widths are searched for, at most (allocation searched). Unless given: 300."""


class Reconstruction(Strict):
    """A fit of each pruned MLP alone to what the dense one gives."""

    max_seconds: Annotated[float, Field(gt=0), About(flag="--reconstruction-seconds")]
    """How long the layers are trained towards the original's, one by one behind the refit, at most."""


class Fairness(Strict):
    """Lets what a neuron says about an attribute weigh in the selection."""

    prompt_pairs: Annotated[Sequence[Any], Field(min_length=1)]
    """Pairs of prompts that differ in the attribute: what reacts to it, or causes more, goes first."""
    weight: Finite = Field(default=1.0, ge=0, le=100)
    """How much that weighs against what a neuron is of use; 0: not at all."""
    by: FairnessBy = "reaction"
    """What of a neuron weighs: how it reacts to the difference, or what share of it, in next tokens, is its
    effect."""


class PruneFields(Strict):
    """What is pruned, and how: the fields that jobs, the command and the engine's calls share."""

    preset: Annotated[Preset, About(_WHAT)] = "guide"
    """guide: as the other fields say; recommended: what measured best; fast, best: in less or more time."""
    pruning_type: Annotated[PruningType, About(_WHAT)] = "MLP_GLU"
    """Neurons of gated (MLP_GLU) or plain (MLP) blocks, layers (DEPTH), heads (ATTENTION), or EXPERTS."""
    neuron_selection_method: Annotated[NeuronSelectionMethod, About(_WHAT, _WIDTH, flag="--method")] = "MAW"
    """How neurons are scored (see docs/glossary.md); CFSP and OBS need calibration."""
    tie_break: Annotated[TieBreak, About(_WHAT, _WIDTH)] = "lower_index"
    """Which of equally scored neurons stay; topk: those that optipfair 0.4.2 keeps."""
    pruning_percentage: Annotated[Percentage | None, About(_SIZE, _BY_SHARE)] = None
    """Per cent of neurons, heads, KV groups or experts that go."""
    expansion_rate: Annotated[Annotated[Finite, Field(gt=0)] | None, About(_SIZE, _WIDTH)] = None
    """The size that stays: intermediate_size in per cent of hidden_size."""
    target_parameters: Annotated[Count | None, About(_SIZE, _BY_SHARE)] = None
    """The size that stays: at most so many parameters of the whole model."""
    target_bytes: Annotated[Count | None, About(_SIZE, _BY_SHARE)] = None
    """The size that stays: at most so many bytes of weights."""
    allocation: Annotated[Allocation | None, About(_WHAT, _WIDTH, neutral=("uniform",))] = None
    """One width for all layers, by importance or error, or searched for. Unless given: uniform."""
    search: Annotated[Search | None, About(_WHAT, _WIDTH)] = None
    """How long widths are searched for."""
    expansion_divisor: Annotated[ExpansionDivisor | None, About(_SIZE, _WIDTH)] = None
    """Rounds intermediate_size to a multiple."""
    layer_indices: Annotated[Sequence[Any] | None, About(_WHAT, _BY_LAYER)] = None
    """The layers to remove (DEPTH), or the only ones to prune. Unless given: all."""
    num_layers_to_remove: Annotated[Annotated[int, Field(ge=1, lt=10_000)] | None, About(_SIZE, _DEPTH)] = (
        None
    )
    """How many layers go (DEPTH)."""
    depth_pruning_percentage: Annotated[
        Annotated[Finite, Field(gt=0, lt=100)] | None, About(_SIZE, _DEPTH)
    ] = None
    """Per cent of layers that go (DEPTH)."""
    layer_selection_method: Annotated[LayerSelectionMethod, About(_WHAT, _DEPTH)] = "last"
    """Which layers go (DEPTH): the last, the first, layer_indices, or, by calibration, those of least use."""
    attention_unit: Annotated[AttentionUnit, About(_WHAT, _HEADS)] = "kv_group"
    """Whole KV groups, or query heads evenly from each group (ATTENTION)."""
    expert_selection_method: Annotated[ExpertSelectionMethod, About(_WHAT, _EXPERTS)] = "REAP"
    """How experts are scored (EXPERTS): by what they add, or by how often they are chosen; by calibration."""
    compensation: Annotated[Compensation, About(_WHAT, _BY_LAYER)] = "none"
    """Whether the weights behind what goes are refitted; least_squares needs calibration."""
    reconstruction: Annotated[Reconstruction | None, About(_RUN, _WIDTH)] = None
    """A fit of gate, up and down of each layer behind the refit; a layer keeps it if held-out text agrees."""
    healing: Annotated[Healing | None, About(_RUN, in_memory=False)] = None
    """A short distillation from the original afterwards."""
    fairness: Annotated[Fairness | None, About(_WHAT, _WIDTH, in_memory=False)] = None
    """Lets neurons go first that react to an attribute; needs calibration."""
    keep_statistics: Annotated[bool, About(CALIBRATION, (*_WIDTH, *_HEADS), in_memory=False)] = False
    """Keeps what a refit at another size needs, for a later job with plan."""
    execution: Annotated[Execution, About(_RUN, in_memory=False)] = "auto"
    """The whole model in memory, or streamed from disk to disk; auto: what fits, and what is quicker."""
    verify: Annotated[VerifyLevel, About(_RUN, in_memory=False)] = "logits"
    """How the saved model is checked: by its logits, by its structure and hashes alone, or not."""
    export: Annotated[Export, About(_RUN, in_memory=False)] = "none"
    """gguf: also writes model.gguf (f16, with the tokenizer) for llama.cpp, beside the checkpoint."""
    dtype: Annotated[DType, About(_RUN, in_memory=False)] = "auto"
    """Number type that the model is loaded and saved in; auto: the checkpoint's."""
    device: Annotated[str, About(_RUN, in_memory=False)] = "auto"
    """What computes: auto (what there is), cpu or cuda."""
    seed: Annotated[Seed, About(_RUN, in_memory=False)] = 0
    """Of healing, reconstruction, search, fairness, and text that the model writes."""
    compute_dtype: Annotated[ComputeDtype, About(_RUN, in_memory=False)] = "auto"
    """What passes that measure or choose are computed in; auto: the fastest here; checkpoint: its own."""

    processes: Annotated[Annotated[int, Field(ge=1, le=64)], About(_RUN, _BY_SHARE, in_memory=False)] = 1
    """How many processes share out the calibration text (gloo on CPUs, NCCL on CUDA); needs calibration."""

    @property
    def prunes_neurons(self) -> bool:
        """Whether intermediate neurons go (rather than layers, heads or experts)."""
        return self.pruning_type in _WIDTH

    @property
    def unequal_widths(self) -> bool:
        """Whether layers may get widths of their own, for what calibration text says."""
        return self.allocation in ("allocated", "searched")

    @property
    def percentage(self) -> float:
        """The percentage that goes where one is asked for, or the guide's default."""
        return DEFAULT_PERCENTAGE if self.pruning_percentage is None else self.pruning_percentage

    def layers_left(self, num_layers: int) -> int:
        """How many of so many layers stay, as far as the options alone tell."""
        removed = self.num_layers_to_remove or 0
        if self.pruning_type == "DEPTH" and self.layer_indices is not None:
            removed = len(self.layer_indices)
        if self.depth_pruning_percentage is not None:
            removed = int(Decimal(str(self.depth_pruning_percentage)) * num_layers / 100)
        return num_layers - removed

    @property
    def writes_text(self) -> bool:
        """Whether the model writes calibration text itself, which takes all of it."""
        return False

    @property
    def healing_seconds(self) -> float | None:
        """How long the result is distilled from the original; ``None``: not at all."""
        return None if self.healing is None else self.healing.max_seconds
