"""Choosing the intermediate neurons that stay (``MLP_GLU`` and ``MLP``)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from optipfair_engine.errors import UnsupportedModelError
from optipfair_engine.options.rules import asked_size
from optipfair_engine.plans.plan import PruningPlan, new_plan
from optipfair_engine.plans.provenance import Provenance
from optipfair_engine.progress import Reporter, null_reporter
from optipfair_engine.pruning.allocation import budget_total, uniform_widths
from optipfair_engine.pruning.sizes import checked_layer_indices, kept_neurons_count, warn_if_nothing_changes
from optipfair_engine.pruning.targets import Target, target_of
from optipfair_engine.pruning.width.stored import kept_by_ranges

if TYPE_CHECKING:
    from torch import Tensor

    from optipfair_engine.architectures.view import MlpWeights, WeightsView
    from optipfair_engine.calibration.facts import CalibrationFacts
    from optipfair_engine.options.prune import PruneOptions

WidthType = Literal["MLP_GLU", "MLP"]


def kind_of(options: PruneOptions) -> WidthType:
    """The kind of MLP that options prune: gated ones, unless they say otherwise."""
    return "MLP" if options.pruning_type == "MLP" else "MLP_GLU"


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
    view: WeightsView, layers: Sequence[int], options: PruneOptions, kind: WidthType
) -> dict[int, int]:
    """How many neurons each of these layers keeps by a percentage or a rate.

    Warns when rounding leaves everything as it was.
    """
    sizes = {layer: mlp.intermediate_size for layer, mlp in locate_mlps(view, layers, kind).items()}
    asked = asked_size(options)
    counts = {layer: kept_neurons_count(old, view.hidden_size, **asked) for layer, old in sizes.items()}
    anything = options.expansion_rate is not None or bool(options.percentage)
    warn_if_nothing_changes([(counts[layer], sizes[layer]) for layer in layers], asked=anything)
    return counts


def uniform_counts(
    view: WeightsView, options: PruneOptions, layers: Sequence[int], kind: WidthType
) -> dict[int, int]:
    """How many neurons each layer keeps when all lose the same share: by percentage, rate or target."""
    target = target_of(view, options)
    if target is None:
        return kept_counts(view, layers, options, kind)
    mlps = locate_mlps(view, layers, kind)
    sizes = {layer: mlp.intermediate_size for layer, mlp in mlps.items()}
    costs = {layer: _cost_per_neuron(mlp, target) for layer, mlp in mlps.items()}
    divisor = options.expansion_divisor or 1
    return uniform_widths(sizes, budget_total(sizes, costs, target, divisor), divisor)


def _cost_per_neuron(mlp: MlpWeights, target: Target) -> int:
    """What goes with one neuron: its rows of gate and up, its column of down, its biases."""
    matrices = 2 if mlp.kind == "plain" else 3
    biases = sum(name in mlp.names for name in ("up_bias", "gate_bias"))
    parameters = matrices * int(mlp.down_weight.shape[0]) + biases
    return target.weigh(mlp.down_weight[0, :1]) * parameters


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
        shrinks = count < mlp.intermediate_size
        kept = kept_by_ranges(mlp, count, method, tie_break) if shrinks and x_norms is None else None
        if kept is not None:
            found.kept[layer] = kept
        elif ordered or shrinks:
            from optipfair_engine.pruning.width.scores import neuron_scores, removal_order, top_indices

            scores = neuron_scores(mlp, method, None if x_norms is None else x_norms[layer])
            if ordered:
                found.order[layer] = tuple(removal_order(scores).tolist())
            if shrinks:
                found.kept[layer] = top_indices(scores, count, tie_break)
        report("select", done, len(counts), f"layer {layer}: {count} of {mlp.intermediate_size} neurons stay")
    return found


def width_plan(
    view: WeightsView,
    options: PruneOptions,
    counts: Mapping[int, int],
    *,
    gather_norms: Callable[[Sequence[int]], Mapping[int, Tensor]] | None = None,
    calibration_facts: CalibrationFacts | None = None,
    report: Reporter = null_reporter,
) -> PruningPlan:
    """Plan width pruning by a score: static, or with the activation norms that ``gather_norms`` gives.

    ``counts`` says how many neurons stay of each layer that is pruned. The norms are gathered, for these
    layers, when every option was found to be right.

    Raises:
        NonFiniteWeightsError: NaN or infinite weights.
    """
    layers = tuple(counts)
    x_norms = None if gather_norms is None else gather_norms(layers)
    found = select_neurons(
        view, counts, options.neuron_selection_method, x_norms, tie_break=options.tie_break, report=report
    )
    provenance = Provenance.of(
        options,
        data_driven=gather_norms is not None,
        layer_indices=None if options.layer_indices is None else layers,
        calibration=calibration_facts,
    )
    return new_plan(view, provenance, kept_neurons=found.kept, removal_order=found.order or None)
