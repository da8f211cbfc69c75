"""Choosing the intermediate neurons that stay (``MLP_GLU`` and ``MLP``)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from optipfair_engine.errors import UnsupportedModelError
from optipfair_engine.plans.plan import PruningPlan, new_plan
from optipfair_engine.plans.provenance import Provenance
from optipfair_engine.progress import Reporter, null_reporter
from optipfair_engine.pruning.sizes import checked_layer_indices, kept_neurons_count, warn_if_nothing_changes
from optipfair_engine.pruning.width.scores import (
    neuron_scores,
    removal_order,
    top_indices,
)

if TYPE_CHECKING:
    from torch import Tensor

    from optipfair_engine.architectures.view import MlpWeights, WeightsView
    from optipfair_engine.calibration.facts import CalibrationFacts
    from optipfair_engine.options.words import NeuronSelectionMethod, TieBreak

WidthType = Literal["MLP_GLU", "MLP"]


@dataclass(frozen=True)
class WidthSize:
    """How much of each layer stays: a percentage that goes, or an expansion rate; optionally rounded."""

    pruning_percentage: float | None = None
    expansion_rate: float | None = None
    expansion_divisor: int | None = None

    def kept(self, size: int, hidden_size: int) -> int:
        """How many of ``size`` neurons stay."""
        return kept_neurons_count(
            size,
            hidden_size,
            pruning_percentage=self.pruning_percentage,
            expansion_rate=self.expansion_rate,
            expansion_divisor=self.expansion_divisor,
        )

    def facts(self) -> dict[str, Any]:
        """What was asked for, under the names of a plan's provenance."""
        return dict(vars(self))


def target_layers(view: WeightsView, layer_indices: Iterable[object] | None) -> tuple[int, ...]:
    """The layers to prune: those asked for, or all."""
    if layer_indices is None:
        return tuple(range(view.num_layers))
    return checked_layer_indices(layer_indices, view.num_layers)


def locate_mlps(view: WeightsView, layers: Sequence[int], pruning_type: WidthType) -> dict[int, MlpWeights]:
    """The MLPs of these layers, all of the kind that ``pruning_type`` is for.

    Raises:
        UnsupportedModelError: another kind, or none that can be pruned; the text names the family.
    """
    family = view.architecture.model_type
    try:
        mlps = {layer: view.mlp(layer) for layer in layers}
    except UnsupportedModelError as error:
        if pruning_type == "MLP":
            raise
        raise UnsupportedModelError(f"Model is not compatible with GLU pruning. {error}") from error
    for layer, mlp in mlps.items():
        if pruning_type == "MLP_GLU" and mlp.kind == "plain":
            raise UnsupportedModelError(
                "Model is not compatible with GLU pruning. "
                "It must have gate_proj, up_proj, and down_proj layers. "
                f'Layer {layer} of the family {family!r} has a plain MLP; use pruning_type="MLP"'
            )
        if pruning_type == "MLP" and mlp.kind != "plain":
            raise UnsupportedModelError(
                f'layer {layer} of the family {family!r} has a gated MLP; use pruning_type="MLP_GLU"'
            )
    return mlps


def kept_counts(
    view: WeightsView, layers: Sequence[int], size: WidthSize, pruning_type: WidthType
) -> dict[int, int]:
    """How many neurons each of these layers keeps; warns when rounding leaves everything as it was."""
    sizes = {layer: mlp.intermediate_size for layer, mlp in locate_mlps(view, layers, pruning_type).items()}
    counts = {layer: size.kept(old, view.hidden_size) for layer, old in sizes.items()}
    asked = size.expansion_rate is not None or bool(size.pruning_percentage)
    warn_if_nothing_changes([(counts[layer], sizes[layer]) for layer in layers], asked=asked)
    return counts


@dataclass(frozen=True)
class Selection:
    """What a score chose.

    Attributes:
        kept: layer → sorted kept neurons, of the layers that shrink.
        order: layer → neurons in the order in which they go, of all layers; empty for a static score, which
            is computed again as easily as it is read.
    """

    kept: dict[int, tuple[int, ...]]
    order: dict[int, tuple[int, ...]]


def select_neurons(
    view: WeightsView,
    counts: Mapping[int, int],
    method: str,
    x_norms: Mapping[int, Tensor] | None = None,
    *,
    tie_break: str = "lower_index",
    report: Reporter = null_reporter,
) -> Selection:
    """The kept neurons of each layer that shrinks, by score.

    Args:
        view: the located model.
        counts: layer → how many stay.
        method: see ``importance``.
        x_norms: layer → activation norms ``[I]`` for a data-driven score; ``None`` for a static one.
        tie_break: see ``importance.top_indices``.
        report: progress, stage "select", one step a layer.
    """
    found = Selection({}, {})
    # what torch.topk keeps of equal scores differs by size, so there is no one order
    ordered = x_norms is not None and tie_break == "lower_index"
    for done, (layer, count) in enumerate(counts.items(), 1):
        mlp = view.mlp(layer)
        if ordered or count < mlp.intermediate_size:
            scores = neuron_scores(mlp, method, None if x_norms is None else x_norms[layer])
            if ordered:
                found.order[layer] = tuple(removal_order(scores).tolist())
            if count < mlp.intermediate_size:
                found.kept[layer] = top_indices(scores, count, tie_break)
        report("select", done, len(counts), f"layer {layer}: {count} of {mlp.intermediate_size} neurons stay")
    return found


def width_plan(
    view: WeightsView,
    *,
    pruning_type: WidthType = "MLP_GLU",
    method: NeuronSelectionMethod = "MAW",
    size: WidthSize,
    counts: Mapping[int, int] | None = None,
    layer_indices: Iterable[object] | None = None,
    gather_norms: Callable[[Sequence[int]], Mapping[int, Tensor]] | None = None,
    calibration_facts: CalibrationFacts | None = None,
    tie_break: TieBreak = "lower_index",
    report: Reporter = null_reporter,
) -> PruningPlan:
    """Plan width pruning by a score: static, or with the activation norms that ``gather_norms`` gives.

    They are gathered, for the layers that it is called with, when every option was found to be right.

    Raises:
        InvalidOptionError, TypeError: an option out of range; see ``sizes``.
        UnsupportedModelError: the family has no such MLP.
        NonFiniteWeightsError: NaN or infinite weights.
    """
    calibrated = gather_norms is not None
    layers = target_layers(view, layer_indices)
    counts = kept_counts(view, layers, size, pruning_type) if counts is None else counts
    x_norms = None if gather_norms is None else gather_norms(layers)
    found = select_neurons(view, counts, method, x_norms, tie_break=tie_break, report=report)
    provenance = Provenance(
        pruning_type=pruning_type,
        neuron_selection_method=method,
        tie_break=None if tie_break == "lower_index" else tie_break,
        data_driven=calibrated,
        layer_indices=None if layer_indices is None else tuple(layers),
        calibration=calibration_facts,
        **size.facts(),
    )
    return new_plan(view, provenance, kept_neurons=found.kept, removal_order=found.order or None)
