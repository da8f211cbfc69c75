"""What the ranks of a calibration are to do: JSON and safetensors in a folder of their own, and no pickle."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file, save_file

from optipfair_engine.calibration.accumulators import CosineImportance, Gram, SquaredNorm
from optipfair_engine.calibration.experts import ExpertScores

if TYPE_CHECKING:
    from optipfair_engine.calibration.runner import Site
    from optipfair_engine.calibration.text import Batch
    from optipfair_engine.options.words import ComputeDtype

    Wanted = Mapping[Site, tuple[Sequence[int], Callable[[], Any]]]

TASK_FILE = "task.json"
BATCHES_FILE = "batches.safetensors"
_KINDS = {kind.__name__: kind for kind in (CosineImportance, ExpertScores, Gram, SquaredNorm)}


@dataclass(frozen=True)
class Task:
    """One calibration by several ranks.

    Attributes:
        source: the model's folder or file.
        work: where the first rank leaves the accumulators, layer by layer.
        wanted: site → layers, the accumulator's class and what it is made with; see ``said``.
        streamed: layer by layer from disk; otherwise each rank runs the whole model.
        holdout_every: every n-th sample feeds the held-out accumulators; ``None``: none does.
        compute_dtype: what forward passes are computed in, or ``auto``.
        dtype: what a model that is not mapped is loaded as.
        device: ``cpu`` or ``cuda``, of which each rank takes its own.
        threads: of each rank.
        windows: token ids that are scored on the way; ``None``: nothing is. Streamed only.
        discard: whether the state of another run in ``work`` is removed, and not an error. Streamed only.
    """

    source: str
    work: str
    wanted: dict[str, Any]
    streamed: bool
    holdout_every: int | None
    compute_dtype: ComputeDtype
    dtype: str = "auto"
    device: str = "cpu"
    threads: int = 1
    windows: list[list[int]] | None = None
    discard: bool = False

    def write(self, folder: Path, batches: Sequence[Batch]) -> None:
        """Leave the task and all batches in a folder."""
        tensors = {f"{n}.{key}": batch[key].contiguous() for n, batch in enumerate(batches) for key in batch}
        save_file(tensors, folder / BATCHES_FILE)
        (folder / TASK_FILE).write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> tuple[Task, list[Batch]]:
        """The task that was left in a folder, and its batches in order."""
        task = cls(**json.loads((folder / TASK_FILE).read_text(encoding="utf-8")))
        found: dict[int, Batch] = {}
        for name, tensor in load_file(folder / BATCHES_FILE).items():
            number, _, key = name.partition(".")
            found.setdefault(int(number), {})[key] = tensor
        return task, [found[number] for number in sorted(found)]

    def factories(self) -> Wanted:
        """``wanted`` as the runners take it."""
        return {
            site: (layers, partial(_KINDS[kind], *arguments))  # type: ignore[misc]
            for site, (layers, kind, arguments) in self.wanted.items()
        }


def said(wanted: Wanted) -> dict[str, Any]:
    """What runners take as ``wanted``, in words that JSON has."""
    return {site: [list(layers), *_kind_of(factory)] for site, (layers, factory) in wanted.items()}


def _kind_of(factory: Callable[[], Any]) -> tuple[str, list[Any]]:
    made: Any = factory
    arguments = list(made.args) if isinstance(made, partial) else []
    return type(factory()).__name__, arguments
