"""What a layer-by-layer calibration keeps on disk: it can be killed at any point and go on where it was.

A work folder holds one file of accumulators per finished layer, the hidden states behind the last of them,
and ``progress.json``, which is replaced last: it only ever names files that are complete.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from optipfair_engine.calibration.accumulators import Gram
from optipfair_engine.calibration.share import ALONE, Share
from optipfair_engine.errors import CalibrationError

if TYPE_CHECKING:
    from optipfair_engine.calibration.text import Batch
    from optipfair_engine.streaming.source import CheckpointSource

PROGRESS_FILE = "progress.json"
EVALUATION_FILE = "evaluation.json"
#: Of the accumulators' state: a folder of another format is another run's.
_FORMAT = 4
A = TypeVar("A")


def signature(source: CheckpointSource, batches: Sequence[Batch], asked: Mapping[str, Any]) -> str:
    """What a run depends on, as one hash: config, tensors (place, size, times of files), tokens, options."""
    digest = hashlib.sha256()
    tensors = {
        name: [file.name, info.dtype, info.shape, info.start] for name, (file, info) in source.tensors.items()
    }
    files = {file.name: [file.stat().st_size, file.stat().st_mtime_ns] for file, _ in source.tensors.values()}
    facts = [_FORMAT, source.config, tensors, files, dict(asked), torch.__version__]
    digest.update(json.dumps(facts, sort_keys=True, default=str).encode())
    for batch in batches:
        for key in sorted(batch):
            digest.update(f"{key}{tuple(batch[key].shape)}".encode())
            digest.update(batch[key].to(torch.int64).contiguous().numpy().tobytes())
    return digest.hexdigest()


class LayerStore:
    """The work folder of one run; with ``discard``, what it holds of any other run is removed.

    Of several processes with the same folder, each keeps its own hidden states, and the first the rest.

    Raises:
        CalibrationError: the folder holds the state of another run, or can't be read.
    """

    def __init__(self, folder: Path, run: str, *, discard: bool = False, share: Share = ALONE) -> None:
        self._folder, self._run, self._share = folder, run, share
        #: In which number type the forward passes are computed; None until the first layer is to be saved.
        self.compute_dtype: str | None = None
        #: Whether the model's layers return a tuple; known once one was run.
        self.returns_tuple = False
        folder.mkdir(parents=True, exist_ok=True)
        if share.rank > 0:
            share.wait()  # for the first, which may discard what is here
        try:
            self.layers_done = self._read_progress()
        except CalibrationError:
            if not discard:
                raise
            self._discard()
        if share.rank == 0:
            share.wait()

    def _discard(self) -> None:
        for path in self._folder.iterdir():
            path.unlink()
        self.layers_done, self.compute_dtype, self.returns_tuple = 0, None, False

    def _read_progress(self) -> int:
        path = self._folder / PROGRESS_FILE
        if not path.exists():
            return 0
        try:
            progress = json.loads(path.read_text(encoding="utf-8"))
            run, done = progress["run"], int(progress["layers_done"])
            self.compute_dtype = progress.get("compute_dtype")
            self.returns_tuple = bool(progress.get("returns_tuple"))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CalibrationError(f"{path.name} in the work folder can't be read: {error}") from error
        if run != self._run:
            raise CalibrationError(
                f"the work folder {self._folder.name} holds the state of another run (another model, "
                "calibration or options); name an empty one, or delete it"
            )
        return done

    def save(self, layer: int, accumulators: Mapping[str, object], hidden: Sequence[Tensor] | None) -> None:
        """Note that ``layer`` is finished: what was gathered, and the states behind it (None: not needed).

        What was gathered is that of all processes afterwards.
        """
        self._share.add_up(accumulators)
        if self._share.rank == 0:
            self._save_gathered(layer, accumulators)
        if hidden is not None:
            save_file({str(n): h.contiguous() for n, h in enumerate(hidden)}, self._states_file(layer + 1))
        self._share.wait()
        self.layers_done = layer + 1
        if self._share.rank == 0:
            self._note_progress()
        self._share.wait()
        self._states_file(layer).unlink(missing_ok=True)

    def _save_gathered(self, layer: int, accumulators: Mapping[str, object]) -> None:
        tensors, numbers = {}, {}
        for key, accumulator in accumulators.items():
            if isinstance(accumulator, Gram):
                accumulator.settle()  # the result is then read back as it lies in the file
            for name, value in vars(accumulator).items():
                if isinstance(value, Tensor):
                    tensors[f"{key}.{name}"] = value.contiguous()
                else:
                    numbers[f"{key}.{name}"] = value
        save_file(tensors, self._layer_file(layer), metadata={"numbers": json.dumps(numbers)})

    def _note_progress(self) -> None:
        draft = self._folder / f".{PROGRESS_FILE}"
        progress = {
            "run": self._run,
            "layers_done": self.layers_done,
            "compute_dtype": self.compute_dtype,
            "returns_tuple": self.returns_tuple,
        }
        draft.write_text(json.dumps(progress), encoding="utf-8")
        draft.replace(self._folder / PROGRESS_FILE)

    def evaluation(self) -> float | None:
        """The mean loss of the evaluation's windows, if they are through."""
        with suppress(OSError, ValueError, KeyError, TypeError):
            kept = json.loads((self._folder / EVALUATION_FILE).read_text(encoding="utf-8"))
            return float(kept["mean_loss"]) if kept["run"] == self._run else None
        return None

    def save_evaluation(self, mean_loss: float) -> None:
        """Keep the mean loss of the evaluation's windows; the hidden states have served."""
        if self._share.rank == 0:
            draft = self._folder / f".{EVALUATION_FILE}"
            draft.write_text(json.dumps({"run": self._run, "mean_loss": mean_loss}), encoding="utf-8")
            draft.replace(self._folder / EVALUATION_FILE)
        self._share.wait()
        self._states_file(self.layers_done).unlink(missing_ok=True)

    def hidden(self) -> list[Tensor]:
        """The hidden states behind the last finished layer, batch by batch."""
        with self._open(self._states_file(self.layers_done)) as file:
            # copies: the file is replaced while they are in use
            return [file.get_tensor(str(number)).clone() for number in range(len(file.keys()))]

    def restore(self, layer: int, key: str, into: A) -> A:
        """Fill an empty accumulator with what ``save`` was given under ``key`` for ``layer``."""
        prefix = f"{key}."
        with self._open(self._layer_file(layer)) as file:
            numbers = json.loads((file.metadata() or {}).get("numbers", "{}"))
            state = {k.removeprefix(prefix): v for k, v in numbers.items() if k.startswith(prefix)}
            state |= {k.removeprefix(prefix): file.get_tensor(k) for k in file.keys() if k.startswith(prefix)}  # noqa: SIM118
        vars(into).update(state)
        return into

    def _open(self, path: Path) -> Any:
        try:
            return safe_open(path, framework="pt")
        except (OSError, SafetensorError) as error:
            raise CalibrationError(f"{path.name} in the work folder can't be read: {error}") from error

    def _layer_file(self, layer: int) -> Path:
        return self._folder / f"layer-{layer:04d}.safetensors"

    def _states_file(self, layers: int) -> Path:
        part = f"-{self._share.rank}" if self._share.size > 1 else ""
        return self._folder / f"states-{layers:04d}{part}.safetensors"


class StoredAccumulators(Mapping[int, A], Generic[A]):
    """Layer → accumulator, read from the work folder when it is asked for, and not kept."""

    def __init__(self, store: LayerStore, key: str, layers: Sequence[int], factory: Callable[[], A]) -> None:
        self._store, self._key, self._layers, self._factory = store, key, tuple(layers), factory

    def __getitem__(self, layer: int) -> A:
        if layer not in self._layers:
            raise KeyError(layer)
        return self._store.restore(layer, self._key, self._factory())

    def __iter__(self) -> Iterator[int]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)
