"""Gram statistics of one calibration: what selection, refit, curves and allocation need, kept or read back.

Saved as one safetensors file, they let another ratio be planned, with its refit, without any forward pass.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optipfair_engine.calibration.accumulators import CosineImportance, Gram
from optipfair_engine.calibration.facts import CalibrationFacts
from optipfair_engine.calibration.runner import HOLDOUT_EVERY, capture_sites
from optipfair_engine.errors import CalibrationError
from optipfair_engine.progress import Reporter, null_reporter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from optipfair_engine.architectures import ModelView
    from optipfair_engine.calibration.runner import Accumulator, Site
    from optipfair_engine.calibration.text import CalibrationSet

STATISTICS_FILE = "statistics.safetensors"
_FORMAT = "optipfair-statistics/1"


@dataclass(frozen=True)
class GramStatistics:
    """G of each layer over fitting tokens and over held-out ones, and how important each layer is.

    Attributes:
        site: ``down_proj`` or ``o_proj``: whose inputs they are of.
        fit: layer → G ``[features, features]`` over the fitting samples.
        held: layer → G over the held-out samples; empty when there were too few samples to hold any out.
        importance: layer → 1 − cos of its input and output, of all layers.
        facts: what the calibration was; ``None`` of statistics that are made for a while only.
    """

    site: str
    fit: Mapping[int, Tensor]
    held: Mapping[int, Tensor] = field(default_factory=dict)
    importance: Mapping[int, float] = field(default_factory=dict)
    facts: CalibrationFacts | None = None

    def pair(self, layer: int) -> tuple[Tensor, Tensor | None]:
        """G of the fitting samples and, where there are any, of the held-out ones.

        Raises:
            CalibrationError: the statistics don't hold that layer.
        """
        if layer not in self.fit:
            raise CalibrationError(f"The statistics hold no layer {layer}; calibrate it first.")
        return self.fit[layer], self.held.get(layer)

    def total(self, layer: int) -> Tensor:
        """G over all calibration tokens."""
        fit, held = self.pair(layer)
        return fit if held is None else fit + held

    def save(self, path: Path) -> None:
        """Write everything to one safetensors file, readable by whoever may read new files here."""
        from safetensors.torch import save_file

        tensors = {f"fit.{layer}": self.fit[layer].contiguous() for layer in self.fit}
        tensors |= {f"held.{layer}": self.held[layer].contiguous() for layer in self.held}
        head = {
            "format": _FORMAT,
            "site": self.site,
            "importance": json.dumps({str(k): v for k, v in self.importance.items()}),
            "facts": json.dumps(self.facts.to_json() if self.facts else {}, sort_keys=True),
        }
        path.unlink(missing_ok=True)
        path.touch()
        mode = stat.S_IMODE(path.stat().st_mode)
        save_file(tensors, path, metadata=head)
        path.chmod(mode)  # safetensors makes files that their owner alone may read

    @classmethod
    def load(cls, path: Path | str) -> GramStatistics:
        """Open a file that ``save`` wrote (or the folder with it); matrices are read when they are asked for.

        Raises:
            CalibrationError: no such file, or of another format.
        """
        from safetensors import SafetensorError, safe_open

        file = Path(path)
        file = file / STATISTICS_FILE if file.is_dir() else file
        try:
            with safe_open(file, framework="pt") as opened:
                head, names = opened.metadata() or {}, list(opened.keys())
            if head.get("format") != _FORMAT:
                raise CalibrationError(
                    f"{file.name} doesn't hold calibration statistics of format {_FORMAT!r}."
                )
            importance = {int(k): float(v) for k, v in json.loads(head["importance"]).items()}
            stated = json.loads(head["facts"])
            facts = CalibrationFacts.from_json(stated) if stated else None
        except (OSError, SafetensorError, KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, CalibrationError):
                raise
            raise CalibrationError(
                f"{file.name} can't be read; a refit at another ratio needs what keep_statistics kept."
            ) from error
        return cls(head["site"], _Lazy(file, "fit", names), _Lazy(file, "held", names), importance, facts)


class _Lazy(Mapping[int, "Tensor"]):
    """Matrices of one part of the file, read one at a time."""

    def __init__(self, file: Path, part: str, names: Sequence[str]) -> None:
        self._file, self._part = file, part
        self._layers = sorted(int(n.split(".")[1]) for n in names if n.startswith(f"{part}."))

    def __getitem__(self, layer: int) -> Tensor:
        from safetensors import safe_open

        if layer not in self._layers:
            raise KeyError(layer)
        with safe_open(self._file, framework="pt") as opened:
            matrix: Tensor = opened.get_tensor(f"{self._part}.{layer}")
        return matrix

    def __contains__(self, layer: object) -> bool:
        return layer in self._layers

    def __iter__(self) -> Iterator[int]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)


def gather_statistics(
    view: ModelView,
    calibration: CalibrationSet,
    layers: Sequence[int],
    site: Site = "down_proj",
    *,
    capture: Callable[..., Mapping[Site, Any]] = capture_sites,
    report: Reporter = null_reporter,
) -> GramStatistics:
    """Statistics of ``layers`` at ``site``, and the importance of every layer, from one forward pass.

    ``capture`` runs the model: ``runner.capture_sites``, or several processes that do as it does.
    """
    wanted: dict[Site, tuple[Sequence[int], Any]] = {
        site: (layers, Gram),
        "layer": (range(view.num_layers), CosineImportance),
    }
    every = HOLDOUT_EVERY if calibration.num_samples >= HOLDOUT_EVERY else None
    captured = capture(view, calibration.batches, wanted, holdout_every=every, report=report)
    fit, held = (_settled(part) for part in (captured[site].fit, captured[site].held))
    return GramStatistics(
        site,
        {i: a.result() for i, a in fit.items()},
        {i: a.result() for i, a in held.items() if a.tokens},
        {i: _merged(captured["layer"].fit[i], a).result() for i, a in captured["layer"].held.items()},
        calibration.facts(_features(fit)),
    )


def _settled(accumulators: Mapping[int, Gram]) -> dict[int, Gram]:
    """Accumulators whose sums themselves are the results: copies would double the memory."""
    found = dict(accumulators)
    for accumulator in found.values():
        accumulator.settle()
    return found


def _merged(first: Any, second: Any) -> Any:
    first.merge(second)
    return first


def _features(accumulators: Mapping[int, Accumulator]) -> int:
    return max(len(a.result()) for a in accumulators.values())  # type: ignore[attr-defined]


def held_out_windows(calibration: CalibrationSet, limit: int = 8) -> list[list[int]]:
    """Token ids of the held-out samples, unpadded, at most ``limit`` of them, spread evenly."""
    return _some(_unpadded(calibration)[HOLDOUT_EVERY - 1 :: HOLDOUT_EVERY], limit)


def scored_windows(calibration: CalibrationSet, limit: int = 8) -> list[list[int]]:
    """Token ids of at most ``limit`` samples to score, the held-out ones where there are any.

    Raises:
        CalibrationError: no sample has two tokens, so there is nothing to predict.
    """
    found = held_out_windows(calibration, limit) or _some(_unpadded(calibration), limit)
    if not found:
        raise CalibrationError("The calibration data has no sample of at least two tokens to predict.")
    return found


def _unpadded(calibration: CalibrationSet) -> list[list[int]]:
    return [
        ids[mask.bool()].tolist()
        for batch in calibration.batches
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]


def _some(samples: Sequence[list[int]], limit: int) -> list[list[int]]:
    """At most ``limit`` of the samples that have a token to predict, spread evenly."""
    usable = [ids for ids in samples if len(ids) > 1]
    return usable[:: max(1, len(usable) // limit)][:limit]
