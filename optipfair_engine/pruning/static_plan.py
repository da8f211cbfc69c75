"""Static plans from a checkpoint's mapped weights, by the code and to the bit of those from memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from optipfair_engine.progress import Reporter, null_reporter
from optipfair_engine.pruning.planner import make_static_plan
from optipfair_engine.streaming.layout import CheckpointLayout

if TYPE_CHECKING:
    from optipfair_engine.options.prune import PruneOptions
    from optipfair_engine.plans.plan import PruningPlan


def static_plan(
    layout: CheckpointLayout, options: PruneOptions, *, report: Reporter = null_reporter
) -> PruningPlan:
    """Choose what stays by the weights alone, one layer at a time.

    Raises:
        InvalidOptionError: options that contradict each other or need calibration.
        UnsupportedModelError: the family lacks what is to be pruned.
        NonFiniteWeightsError: NaN or infinite weights among those that the scores read.
    """
    return make_static_plan(layout, options, report=report)
