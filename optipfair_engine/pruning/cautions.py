"""What a pruned model's user must be told: warnings with codes, and the facts of its calibration."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from optipfair_engine.errors import Caution
from optipfair_engine.pruning.sizes import NOTHING_PRUNED

if TYPE_CHECKING:
    from optipfair_engine.plans.plan import PruningPlan

#: What a result says when nothing was calibrated.
STATIC_WARNING = (
    "no calibration was given: selection by weights alone damages models (SmolLM2-135M with 30 % of its "
    "neurons removed by static MAW has 29 times the dense perplexity, calibrated and refitted 1.23 times); "
    "give calibration text, or let the model write it (calibration source model)"
)
STATIC_DEPTH_WARNING = (
    "no calibration was given: the layers that go were chosen by their position alone, which can ruin a "
    'model; give calibration text and layer_selection_method "importance", and measure perplexity'
)
OWN_TEXT_NOTICE: Final = (
    "no calibration text was given: the model was calibrated on text that it wrote itself, which shows what "
    "it has learnt but not what it will read; give text like that, if there is some"
)
UNEQUAL_LAYERS: Final = (
    "the layers have unequal sizes, which plain transformers refuses: load the model with "
    "optipfair_engine.load_pruned, or convert it to GGUF"
)
#: Above this ratio of perplexities the result says that the model is damaged.
DAMAGED_RATIO: Final = 2.0


def calibration_metrics(plan: PruningPlan) -> dict[str, Any]:
    """What a result says of its calibration: source, tokens, tokens per feature; nothing without one.

    With text that the model wrote itself, also how many samples of it there were.
    """
    facts = plan.provenance.calibration
    if facts is None:
        return {}
    names = ["source", "tokens", "tokens_per_feature"]
    if facts.own_samples:
        names.append("own_samples")
    return {f"calibration_{name}": getattr(facts, name) for name in names}


def allocation_metrics(plan: PruningPlan) -> dict[str, Any]:
    """What equal and allocated widths were measured or predicted to cost, where that is known."""
    losses, errors = plan.provenance.allocation_held_out_losses, plan.provenance.allocation_predicted_errors
    found = {f"held_out_loss_{rule}": loss for rule, loss in (losses or {}).items()}
    return found | {f"predicted_error_{rule}": error for rule, error in (errors or {}).items()}


def reconstruction_metrics(plan: PruningPlan) -> dict[str, Any]:
    """How many layers got better by reconstruction, and the mean held-out error of all that were tried."""
    errors = plan.provenance.reconstruction_errors
    if errors is None:
        return {}
    found: dict[str, Any] = {"reconstruction_layers": len(plan.provenance.reconstructed_layers or ())}
    for place, name in enumerate(("before", "after")) if errors else ():
        mean = sum(pair[place] for pair in errors.values()) / len(errors)
        found[f"reconstruction_error_{name}"] = round(mean, 6)
    return found


def plan_metrics(plan: PruningPlan) -> dict[str, Any]:
    """What a result says of how its plan came about: calibration, division, reconstruction."""
    return calibration_metrics(plan) | allocation_metrics(plan) | reconstruction_metrics(plan)


def plan_cautions(plan: PruningPlan, *, calibrated: bool) -> list[Caution]:
    """What a plan alone gives reason to say.

    ``calibrated``: there was calibration text, if only to heal on.
    """
    made = plan.provenance
    if made.calibration is None and not calibrated:
        text = STATIC_DEPTH_WARNING if plan.removed_layers else STATIC_WARNING
        found = [Caution("not_calibrated", text)]
    else:
        texts = made.calibration.warnings if made.calibration is not None else ()
        found = [Caution("calibration_weak", text) for text in texts]
        if made.calibration is not None and 0 < made.calibration.samples == made.calibration.own_samples:
            found.append(Caution("self_calibrated", OWN_TEXT_NOTICE))
    code = "first_layer_removed" if plan.removed_layers else "widths_not_compared"
    if made.pruning_type == "EXPERTS":
        code = "experts_unseen"
    return found + [Caution(code, text) for text in made.warnings or ()]


def cautions_of(
    plan: PruningPlan, metrics: Mapping[str, Any], *, calibrated: bool, loads_with_transformers: bool
) -> list[Caution]:
    """Everything that a result must say: of its plan, of what was measured, of how it loads."""
    if metrics["reduction"] <= 0:
        return [Caution("nothing_pruned", NOTHING_PRUNED)]
    return [
        *plan_cautions(plan, calibrated=calibrated),
        *_of_measurements(metrics),
        *(() if loads_with_transformers else (Caution("unequal_layers", UNEQUAL_LAYERS),)),
        *(Caution("fairness", text) for text in metrics.get("fairness", {}).get("warnings", ())),
    ]


def _of_measurements(metrics: Mapping[str, Any]) -> Iterator[Caution]:
    ratio = metrics.get("perplexity_ratio")
    if ratio is not None and not ratio <= DAMAGED_RATIO:  # NaN, too
        said = f"{ratio:.3g}" if ratio < 1000 else f"{ratio:,.0f}"
        text = (
            f"perplexity on the evaluation text is {said} times that of the original model, which is "
            "then hardly of use: prune less, give calibration text, or heal it"
        )
        yield Caution("perplexity_ratio_large", text)
