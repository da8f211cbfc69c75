"""The plots of a pruning; they need its plan and sizes, no weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from optipfair_engine.errors import UnsupportedModelError

if TYPE_CHECKING:
    from optipfair_engine.architectures.view import WeightsView
    from optipfair_engine.plans.plan import PruningPlan
    from optipfair_engine.progress import Reporter


def units_per_layer(view: WeightsView, plan: PruningPlan) -> list[int]:
    """What the plot of kept units counts, layer by layer: neurons, query heads or experts (0: has none)."""
    counts = []
    for layer in range(view.num_layers):
        try:
            size = _units(view, plan, layer)
        except (
            UnsupportedModelError
        ):  # a mixture of experts, or T5, beside layers that the plan doesn't touch
            size = 0
        counts.append(size)
    return counts


def _units(view: WeightsView, plan: PruningPlan, layer: int) -> int:
    if plan.kept_experts:
        return view.experts(layer).num_experts
    return view.attention(layer).num_heads if plan.kept_heads else view.mlp(layer).intermediate_size


def write_plots(
    output: Path,
    stats: dict[str, Any],
    plan: PruningPlan,
    original_units: list[int],
    *,
    report: Reporter,
) -> None:
    """``parameters.png``, and ``kept_….png`` of neurons, heads or layers, and ``error_curves.png``."""
    from optipfair_engine.figures import plot_curves, plot_kept, plot_layers, plot_parameters

    plot_parameters(output / "parameters.png", stats["original_parameters"], stats["pruned_parameters"])
    report("plot", 1, 2, "parameters.png")
    if plan.removed_layers:
        name = plot_layers(output / "kept_layers.png", plan.num_layers, plan.removed_layers).name
    elif plan.kept_heads:
        kept = [
            len(plan.kept_heads[i].query) if i in plan.kept_heads else n for i, n in enumerate(original_units)
        ]
        name = plot_kept(output / "kept_heads.png", kept, original_units, unit="query heads").name
    elif plan.kept_experts:
        kept = [len(plan.kept_experts.get(i, range(n))) for i, n in enumerate(original_units)]
        name = plot_kept(output / "kept_experts.png", kept, original_units, unit="experts").name
    else:
        kept = [len(plan.kept_neurons.get(i, range(n))) for i, n in enumerate(original_units)]
        name = plot_kept(output / "kept_neurons.png", kept, original_units, unit="intermediate neurons").name
    if plan.curves:
        name = plot_curves(output / "error_curves.png", plan.curves, plan.kept_neurons).name
    report("plot", 2, 2, name)
