"""What ``runner.capture_sites`` and ``layerwise.capture_layerwise`` gather, by several processes."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from optipfair_engine.calibration.runner import HOLDOUT_EVERY, Captured
from optipfair_engine.calibration.share import Share
from optipfair_engine.calibration.text import iter_batches
from optipfair_engine.computing.asked import asked_for, note_use
from optipfair_engine.computing.number_type import chosen_dtype, name_of
from optipfair_engine.errors import InvalidOptionError
from optipfair_engine.processes.host import run_ranks
from optipfair_engine.processes.rank import IN_MEMORY_RUN
from optipfair_engine.processes.task import Task, said
from optipfair_engine.progress import Announcer, Reporter, null_announcer, null_reporter
from optipfair_engine.streaming.layerwise.run import capture_layerwise
from optipfair_engine.streaming.layerwise.state import LayerStore

if TYPE_CHECKING:
    from optipfair_engine.architectures import ModelView
    from optipfair_engine.calibration.runner import Site
    from optipfair_engine.calibration.text import Batch
    from optipfair_engine.options.prune import PruneOptions
    from optipfair_engine.streaming.layerwise.evaluation import Evaluation

Wanted = Mapping["Site", tuple[Sequence[int], Callable[[], Any]]]


@dataclass(frozen=True)
class Processes:
    """How many processes calibrate, and the folder under which they are told what to do."""

    count: int
    scratch: Path

    @classmethod
    def asked_for(cls, options: PruneOptions, scratch: Path) -> Processes | None:
        """Those that the options ask for; ``None`` if one process, this one, does everything."""
        return None if options.processes == 1 else cls(options.processes, scratch)

    def capture_layerwise(
        self,
        source: Path | str,
        batches: Iterable[Any],
        wanted: Wanted,
        work: Path,
        *,
        view: ModelView,
        holdout_every: int | None = HOLDOUT_EVERY,
        beside: Evaluation | None = None,
        discard: bool = False,
        report: Reporter = null_reporter,
        announce: Announcer = null_announcer,
    ) -> dict[Site, Captured[Any]]:
        """What ``layerwise.capture_layerwise`` gives, which says what the arguments are.

        Raises:
            InvalidOptionError: fewer batches than processes.
            CalibrationError, UnsupportedModelError: see there.
            EngineError, MemoryError, OSError: see ``host.run_ranks``.
        """
        plain = self._shared(batches)
        task = Task(
            str(Path(source).absolute()),
            str(work.absolute()),
            said(wanted),
            streamed=True,
            holdout_every=holdout_every,
            compute_dtype=asked_for(),
            threads=self._threads,
            windows=None if beside is None else [list(window) for window in beside.windows],
            discard=discard,
        )
        with self._folder() as folder:
            run_ranks(task, plain, self.count, folder, report, announce)
        # all of it is there: nothing is run, and each accumulator is read when it is asked for
        return capture_layerwise(
            source,
            plain,
            wanted,
            work,
            view=view,
            holdout_every=holdout_every,
            beside=beside,
            share=Share(size=self.count),
        )

    def capture_sites(
        self,
        source: Path,
        dtype: str,
        view: ModelView,
        batches: Iterable[Any],
        wanted: Wanted,
        *,
        holdout_every: int | None = HOLDOUT_EVERY,
        report: Reporter = null_reporter,
    ) -> dict[Site, Captured[Any]]:
        """What ``runner.capture_sites`` gives, which says what the other arguments are.

        Args:
            source: where ``view``'s model was loaded from: each rank opens it, too.
            dtype: what it was loaded as.
            view: the model in memory.
            batches: see there.
            wanted: see there.
            holdout_every: see there.
            report: progress, stage "calibrate", one step a batch.

        Raises:
            InvalidOptionError: fewer batches than processes, or fewer GPUs.
            EngineError, MemoryError, OSError: see ``host.run_ranks``.
        """
        plain = self._shared(batches)
        device = next(view.model.parameters()).device
        _check_device(device.type, self.count)
        chosen = name_of(chosen_dtype(view.model))
        note_use(chosen)
        with self._folder() as folder, self._folder() as work:
            task = Task(
                str(source.absolute()),
                str(work.absolute()),
                said(wanted),
                streamed=False,
                holdout_every=holdout_every,
                # as this process would compute: a trial in each rank could end in two ways
                compute_dtype="float32" if chosen == "float32" and device.type == "cpu" else "checkpoint",
                dtype=dtype,
                device=device.type,
                threads=self._threads,
            )
            run_ranks(task, plain, self.count, folder, report, null_announcer)
            store = LayerStore(work, IN_MEMORY_RUN)
            return {site: _read(store, site, layers, make, device) for site, (layers, make) in wanted.items()}

    @property
    def _threads(self) -> int:
        """The threads of each rank: this process, which has them otherwise, only waits."""
        return max(1, torch.get_num_threads() // self.count)

    def _shared(self, batches: Iterable[Any]) -> list[Batch]:
        plain = list(iter_batches(batches))
        if len(plain) < self.count:
            raise InvalidOptionError(
                f"processes {self.count}: the calibration has {len(plain)} batches of samples to divide; "
                f"give a smaller batch_size, more samples, or at most {max(1, len(plain))} processes"
            )
        return plain

    @contextmanager
    def _folder(self) -> Iterator[Path]:
        self.scratch.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".optipfair-processes-", dir=self.scratch) as folder:
            yield Path(folder)


def _read(
    store: LayerStore, site: Site, layers: Sequence[int], factory: Callable[[], Any], device: torch.device
) -> Captured[Any]:
    """What the ranks left of a site, in memory."""

    def read(part: str) -> dict[int, Any]:
        return {layer: _on(store.restore(layer, f"{site}.{part}", factory()), device) for layer in layers}

    return Captured(read("fit"), read("held"))


def _on(accumulator: Any, device: torch.device) -> Any:
    state = vars(accumulator)
    state.update({name: value.to(device) for name, value in state.items() if isinstance(value, torch.Tensor)})
    return accumulator


def _check_device(device: str, count: int) -> None:
    """Each rank has a GPU of its own, and NCCL is for CUDA."""
    if device not in ("cpu", "cuda"):
        raise InvalidOptionError(f"processes {count}: on a CPU or on CUDA, not on {device}")
    there = torch.cuda.device_count() if device == "cuda" else count
    if count > there:
        raise InvalidOptionError(f"processes {count}: each takes a GPU of its own, and there are {there}")
