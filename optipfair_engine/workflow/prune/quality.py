"""What the prune workflow adds for calibrated plans: healing, and static MAW of the same size beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from optipfair_engine.architectures import ModelView, locate
from optipfair_engine.plans.apply import apply_plan
from optipfair_engine.plans.plan import PruningPlan
from optipfair_engine.plans.provenance import Provenance
from optipfair_engine.pruning.allocation import uniform_widths
from optipfair_engine.pruning.attention.by_norm import heads_by_norm, locate_attentions
from optipfair_engine.pruning.depth.choice import depth_plan, select_layers
from optipfair_engine.pruning.width.by_score import select_neurons

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from optipfair_engine.calibration import CalibrationSet
    from optipfair_engine.options.prune import PruneOptions
    from optipfair_engine.progress import Reporter


def static_plan_of_same_size(view: ModelView, plan: PruningPlan) -> PruningPlan | None:
    """What weights alone would choose for as many neurons (uniformly, by MAW), heads or layers.

    It is what people got before there was calibration, so it is the plan's yardstick. Experts have none.
    """
    provenance = Provenance(pruning_type=plan.provenance.pruning_type)
    if plan.removed_layers:
        count = len(plan.removed_layers)
        return depth_plan(view, select_layers(view.num_layers, {"num_layers_to_remove": count}))
    if plan.kept_heads:
        unit = plan.provenance.attention_unit or "kv_group"
        blocks = locate_attentions(view, list(plan.kept_heads))
        counts = {
            layer: len(heads.kv) if unit == "kv_group" else len(heads.query) // len(heads.kv)
            for layer, heads in plan.kept_heads.items()
        }
        heads = heads_by_norm(view, blocks, counts, unit)
        return replace(plan, provenance=provenance, kept_heads=heads, weights={})
    if not plan.kept_neurons:
        return None
    pruned = plan.provenance.layer_indices or range(view.num_layers)
    sizes = {layer: view.mlp(layer).intermediate_size for layer in pruned}
    total = sum(len(plan.kept_neurons.get(layer, range(size))) for layer, size in sizes.items())
    kept = select_neurons(view, uniform_widths(sizes, total), "MAW").kept
    return replace(
        plan, provenance=provenance, kept_neurons=kept, weights={}, curves=None, removal_order=None
    )


def static_perplexity(
    model: PreTrainedModel, plan: PruningPlan, windows: Sequence[Sequence[int]], report: Reporter
) -> float | None:
    """Perplexity of the model pruned by weights alone to the plan's size."""
    from optipfair_engine.evaluation.perplexity import score_windows

    static = static_plan_of_same_size(locate(model), plan)
    return None if static is None else score_windows(apply_plan(model, static), windows, report).perplexity


def heal_pruned(
    pruned: PreTrainedModel,
    dense: PreTrainedModel,
    options: PruneOptions,
    calibration: CalibrationSet,
    report: Reporter,
) -> dict[str, Any]:
    """Distil the pruned model in place, for at most ``healing_seconds``; what the metrics say of it."""
    from optipfair_engine.evaluation.healing import heal

    found = heal(
        pruned,
        dense,
        calibration.batches,
        max_seconds=options.healing_seconds,
        seed=options.seed,
        report=report,
    )
    return {
        "healing_steps": found.steps,
        "healing_seconds": found.seconds,
        "healing_first_loss": found.first_loss,
        "healing_last_loss": found.last_loss,
        "healing_stopped_by": found.stopped_by,
    }
