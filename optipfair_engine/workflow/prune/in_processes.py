"""Calibration of a model in memory by several processes, each with its share of the text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from optipfair_engine.calibration.accumulators import SquaredNorm
from optipfair_engine.calibration.experts import ExpertScores
from optipfair_engine.calibration.statistics import GramStatistics, gather_statistics
from optipfair_engine.processes.capture import Processes, Wanted
from optipfair_engine.progress import Reporter
from optipfair_engine.pruning.gathering import IN_MEMORY, Gatherer

if TYPE_CHECKING:
    from torch import Tensor

    from optipfair_engine.architectures import ModelView
    from optipfair_engine.calibration import CalibrationSet
    from optipfair_engine.calibration.runner import Site
    from optipfair_engine.options.prune import PruneOptions


def gatherer_for(source: Path, options: PruneOptions, scratch: Path) -> Gatherer:
    """Where statistics come from of the model in memory that was loaded from ``source``, as the options say.

    ``scratch`` is a folder for what processes tell each other.
    """
    processes = Processes.asked_for(options, scratch)
    return IN_MEMORY if processes is None else _InProcesses(source, options.dtype, processes)


class _InProcesses(Gatherer):
    """Statistics by forward passes of several processes, which open the model themselves."""

    def __init__(self, source: Path, dtype: str, processes: Processes) -> None:
        self._capture = partial(processes.capture_sites, source, dtype)

    def grams(
        self,
        view: ModelView,
        calibration: CalibrationSet,
        layers: Sequence[int],
        site: Site,
        report: Reporter,
    ) -> GramStatistics:
        return gather_statistics(view, calibration, layers, site, capture=self._capture, report=report)

    def norms(
        self, view: ModelView, calibration: CalibrationSet, layers: Sequence[int], report: Reporter
    ) -> Mapping[int, Tensor]:
        wanted: Wanted = {"down_proj": (layers, SquaredNorm)}
        found = self._capture(view, calibration.batches, wanted, holdout_every=None, report=report)
        return {layer: accumulator.result() for layer, accumulator in found["down_proj"].fit.items()}

    def experts(
        self, view: ModelView, calibration: CalibrationSet, layers: Sequence[int], report: Reporter
    ) -> Mapping[int, ExpertScores]:
        wanted: Wanted = {"experts": (layers, partial(ExpertScores, view.routing.num_experts))}
        found = self._capture(view, calibration.batches, wanted, holdout_every=None, report=report)
        return found["experts"].fit
