"""Where planning gets its calibration's statistics from, once all options were found to be right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from optipfair_engine.calibration import SquaredNorm, capture
from optipfair_engine.calibration.experts import ExpertScores
from optipfair_engine.calibration.statistics import GramStatistics, gather_statistics
from optipfair_engine.progress import Reporter
from optipfair_engine.pruning.width.search import Memory

if TYPE_CHECKING:
    from torch import Tensor

    from optipfair_engine.architectures import ModelView
    from optipfair_engine.calibration import CalibrationSet
    from optipfair_engine.calibration.runner import Site


class Gatherer:
    """Statistics by forward passes of a model in memory; what is solved stays in memory, too."""

    def grams(
        self,
        view: ModelView,
        calibration: CalibrationSet,
        layers: Sequence[int],
        site: Site,
        report: Reporter,
    ) -> GramStatistics:
        """Gram statistics of ``layers`` at ``site``, and the importance of every layer."""
        return gather_statistics(view, calibration, layers, site, report=report)

    def norms(
        self, view: ModelView, calibration: CalibrationSet, layers: Sequence[int], report: Reporter
    ) -> Mapping[int, Tensor]:
        """Layer → root of the total squared ``down_proj`` input ``[I]`` over the unmasked tokens."""
        found = capture(view, calibration.batches, layers, SquaredNorm, "down_proj", report=report)
        return {layer: accumulator.result() for layer, accumulator in found.items()}

    def experts(
        self, view: ModelView, calibration: CalibrationSet, layers: Sequence[int], report: Reporter
    ) -> Mapping[int, ExpertScores]:
        """Layer → what its experts did with the unmasked tokens."""
        factory = partial(ExpertScores, view.routing.num_experts)
        return capture(view, calibration.batches, layers, factory, "experts", report=report)

    def search_memory(self, key: str) -> Memory:
        """Where a search that depends on ``key`` leaves its state: nowhere, without a folder for it."""
        del key
        return Memory()

    def hold(self, weight: Tensor) -> Tensor:
        """A refitted weight, where it may lie until the plan is applied."""
        return weight


IN_MEMORY = Gatherer()
