"""What a result says of its calibration, or of the want of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optipfair_engine.options.prune import PruneOptions
    from optipfair_engine.plans.plan import PruningPlan

#: What a result says when nothing was calibrated.
STATIC_WARNING = (
    "no calibration was given: selection by weights alone damages models (SmolLM2-135M with 30 % of its "
    "neurons removed by static MAW has 29 times the dense perplexity, calibrated and refitted 1.23 times); "
    "give calibration text"
)


def calibration_metrics(plan: PruningPlan, options: PruneOptions, *, calibrated: bool) -> dict[str, Any]:
    """What a result says of its calibration: source, tokens, tokens per feature, and warnings (if any)."""
    facts = plan.provenance.calibration
    found: dict[str, Any] = {}
    warnings: list[str] = []
    if facts is not None:
        names = ("source", "tokens", "tokens_per_feature")
        found = {f"calibration_{name}": getattr(facts, name) for name in names}
        warnings += facts.warnings
    warnings += plan.provenance.warnings or ()
    if options.preset != "guide" and not calibrated and facts is None:
        warnings.append(STATIC_WARNING)
    if warnings:
        found["warnings"] = warnings
    return found
