"""Gram statistics from a layer-by-layer calibration, one layer in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optipfair_engine.calibration.accumulators import CosineImportance, Gram
from optipfair_engine.calibration.runner import HOLDOUT_EVERY, Captured
from optipfair_engine.calibration.statistics import GramStatistics
from optipfair_engine.progress import Announcer, Reporter, null_announcer, null_reporter
from optipfair_engine.streaming.layerwise.run import Wanted, capture_layerwise

if TYPE_CHECKING:
    from torch import Tensor

    from optipfair_engine.architectures import ModelView
    from optipfair_engine.calibration.runner import Site
    from optipfair_engine.calibration.text import CalibrationSet
    from optipfair_engine.streaming.layerwise.evaluation import Evaluation


class _Results(Mapping[int, "Tensor"]):
    """Layer → the result of its accumulator, computed when it is asked for, and not kept."""

    def __init__(self, accumulators: Mapping[int, Any], layers: Sequence[int]) -> None:
        self._accumulators, self._layers = accumulators, tuple(layers)

    def __getitem__(self, layer: int) -> Tensor:
        if layer not in self._layers:
            raise KeyError(layer)
        result: Tensor = self._accumulators[layer].result()
        return result

    def __iter__(self) -> Iterator[int]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)


def gather_statistics_layerwise(
    source: Path,
    view: ModelView,
    calibration: CalibrationSet,
    layers: Sequence[int],
    work: Path,
    site: Site = "down_proj",
    *,
    capture: Callable[..., Mapping[Site, Captured[Any]]] = capture_layerwise,
    beside: Evaluation | None = None,
    discard: bool = False,
    report: Reporter = null_reporter,
    announce: Announcer = null_announcer,
) -> GramStatistics:
    """What ``statistics.gather_statistics`` gives, read from ``work`` layer by layer.

    Args:
        source: a safetensors folder.
        view: of it, from ``layerwise.open_checkpoint``.
        calibration: the samples.
        layers: whose statistics are wanted.
        work: a folder for the state; see ``layerwise.capture_layerwise``. It must outlive the result.
        site: whose inputs.
        capture: what runs the layers: ``layerwise.capture_layerwise``, or processes that do as it does.
        beside: see ``layerwise.capture_layerwise``.
        discard: see there.
        announce: see there.
        report: progress, stage "calibrate", one step a layer.
    """
    wanted: Wanted = {site: (layers, Gram), "layer": (range(view.num_layers), CosineImportance)}
    every = HOLDOUT_EVERY if calibration.num_samples >= HOLDOUT_EVERY else None
    captured = capture(
        source,
        calibration.batches,
        wanted,
        work,
        view=view,
        holdout_every=every,
        beside=beside,
        discard=discard,
        report=report,
        announce=announce,
    )
    importance = {}
    for layer, accumulator in captured["layer"].held.items():
        accumulator.merge(captured["layer"].fit[layer])
        importance[layer] = accumulator.result()
    grams = captured[site]
    held = list(layers) if every is not None else []
    return GramStatistics(
        site,
        _Results(grams.fit, layers),
        _Results(grams.held, held),
        importance,
        calibration.facts(_features(view, site, layers)),
    )


def _features(view: ModelView, site: Site, layers: Sequence[int]) -> int:
    if site == "o_proj":
        return max(int(view.attention(layer).o_weight.shape[1]) for layer in layers)
    return max(view.mlp(layer).intermediate_size for layer in layers)
