"""What a pruning did, under the guide's keys. All parameters count, frozen ones too; tied ones count once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from optipfair_engine.errors import UnsupportedModelError

if TYPE_CHECKING:
    from optipfair_engine.architectures.view import Parameters, WeightsView
    from optipfair_engine.plans.plan import PruningPlan


def count_parameters(model: Parameters) -> int:
    """The number of a model's parameters, whether they are trained or not."""
    return sum(parameter.numel() for parameter in model.parameters())


def mean_expansion_rate(view: WeightsView) -> float | None:
    """Intermediate over hidden size in percent, the mean over layers; ``None`` without such MLPs."""
    try:
        sizes = [view.mlp(layer).intermediate_size for layer in range(view.num_layers)]
    except UnsupportedModelError:
        return None
    return 100 * sum(sizes) / (len(sizes) * view.hidden_size)


def pruning_statistics(
    original_parameters: int, pruned: WeightsView, plan: PruningPlan, *, pruned_parameters: int | None = None
) -> dict[str, Any]:
    """The guide's ``stats``; ``pruned_parameters`` are counted unless they are given.

    Width and attention: ``expansion_rate``, ``pruned_layers``, ``total_layers``. Depth:
    ``original_layer_count``, ``final_layer_count``, ``layers_removed``, ``layer_reduction_percentage``.
    Experts, of each layer that has some: ``original_expert_count``, ``final_expert_count``.
    Always the four counts of parameters.
    """
    if pruned_parameters is None:
        pruned_parameters = count_parameters(pruned.model)
    reduction = original_parameters - pruned_parameters
    stats: dict[str, Any] = {
        "original_parameters": original_parameters,
        "pruned_parameters": pruned_parameters,
        "reduction": reduction,
        "percentage_reduction": 100 * reduction / original_parameters if original_parameters else 0.0,
        "expansion_rate": mean_expansion_rate(pruned),
        "pruned_layers": len({*plan.kept_neurons, *plan.kept_heads, *plan.kept_experts}),
        "total_layers": plan.num_layers,
    }
    if plan.provenance.pruning_type == "DEPTH":
        removed = len(plan.removed_layers)
        stats |= {
            "original_layer_count": plan.num_layers,
            "final_layer_count": plan.num_layers - removed,
            "layers_removed": removed,
            "layer_reduction_percentage": 100 * removed / plan.num_layers,
        }
    if plan.provenance.pruning_type == "EXPERTS" and plan.removal_order:
        before = len(next(iter(plan.removal_order.values())))
        after = len(next(iter(plan.kept_experts.values()), range(before)))
        stats |= {"original_expert_count": before, "final_expert_count": after}
    return stats
