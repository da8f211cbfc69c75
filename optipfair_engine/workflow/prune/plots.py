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
    from optipfair_engine.figures import draw_curves, draw_kept, draw_layers, draw_parameters, save

    sizes = draw_parameters(stats["original_parameters"], stats["pruned_parameters"])
    save(sizes, output / "parameters.png")
    report("plot", 1, 2, "parameters.png")
    if plan.removed_layers:
        figure, name = draw_layers(plan.num_layers, plan.removed_layers), "kept_layers.png"
    elif plan.kept_heads:
        kept = [
            len(plan.kept_heads[i].query) if i in plan.kept_heads else n for i, n in enumerate(original_units)
        ]
        figure, name = draw_kept(kept, original_units, unit="query heads"), "kept_heads.png"
    elif plan.kept_experts:
        kept = [len(plan.kept_experts.get(i, range(n))) for i, n in enumerate(original_units)]
        figure, name = draw_kept(kept, original_units, unit="experts"), "kept_experts.png"
    else:
        kept = [len(plan.kept_neurons.get(i, range(n))) for i, n in enumerate(original_units)]
        figure, name = draw_kept(kept, original_units, unit="intermediate neurons"), "kept_neurons.png"
    save(figure, output / name)
    if plan.curves:
        name = "error_curves.png"
        save(draw_curves(plan.curves, plan.kept_neurons), output / name)
    report("plot", 2, 2, name)
