"""What one rank of a calibration does: its share of the batches, through its own copy of the model."""

from __future__ import annotations

import errno
import json
import os
import signal
import threading
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from optipfair_engine.architectures import locate
from optipfair_engine.calibration.runner import capture_sites
from optipfair_engine.computing.asked import computing
from optipfair_engine.errors import (
    CheckpointError,
    EngineError,
    UnsupportedModelError,
    is_out_of_memory,
    system_says,
)
from optipfair_engine.jsonable import write_json
from optipfair_engine.processes.task import Task
from optipfair_engine.processes.together import join
from optipfair_engine.progress import Announcer, Reporter, null_announcer, null_reporter
from optipfair_engine.streaming.layerwise.evaluation import Evaluation
from optipfair_engine.streaming.layerwise.run import capture_layerwise, open_checkpoint
from optipfair_engine.streaming.layerwise.state import LayerStore

if TYPE_CHECKING:
    from optipfair_engine.architectures import ModelView
    from optipfair_engine.calibration.share import Share
    from optipfair_engine.calibration.text import Batch

#: What ranks that run the whole model leave their sums under.
IN_MEMORY_RUN = "in memory"
MEETING_FILE = "meeting"
#: How often a rank looks whether its launcher is still there.
_WATCH_SECONDS = 0.5
#: How much later a rank ends that failed because another one is gone: the launcher then names that one.
_MODESTY_SECONDS = 1.0


def run_rank(folder: str, rank: str, size: str) -> None:
    """Do the task in ``folder`` as rank ``rank`` of ``size``; an error is left in a file beside it."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the launcher's own handler came along with the fork
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True, name="launcher-watch").start()
    channel = _own_output()
    try:
        work(Path(folder), int(rank), int(size), channel)
    except BaseException as error:
        traceback.print_exc()
        write_json(error_file(Path(folder), int(rank)), _described(error))
        if not isinstance(error, EngineError | OSError | MemoryError):
            time.sleep(_MODESTY_SECONDS)
        raise SystemExit(1) from error


def error_file(folder: Path, rank: int) -> Path:
    """Where a rank says why it failed."""
    return folder / f"error-{rank}.json"


def work(folder: Path, rank: int, size: int, channel: int | None = None) -> None:
    """The task of a rank; the first tells its progress, as lines of JSON, over a file descriptor."""
    task, batches = Task.read(folder)
    torch.set_num_threads(task.threads)
    device = torch.device(task.device, rank) if task.device == "cuda" else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    share = join(folder / MEETING_FILE, rank, size, device)
    told = _Told(channel) if rank == 0 and channel is not None else None
    report: Reporter = null_reporter if told is None else told.report
    with computing(task.compute_dtype):
        if task.streamed:
            announce = null_announcer if told is None else told.announce
            _layer_by_layer(task, batches, share, report, announce)
        else:
            _whole_model(task, batches, share, device, report)
    share.wait()
    dist.destroy_process_group()


def _layer_by_layer(
    task: Task, batches: list[Batch], share: Share, report: Reporter, announce: Announcer
) -> None:
    capture_layerwise(
        task.source,
        batches,
        task.factories(),
        Path(task.work),
        holdout_every=task.holdout_every,
        beside=None if task.windows is None else Evaluation(task.windows),
        discard=task.discard,
        share=share,
        report=report,
        announce=announce,
    )


def _whole_model(
    task: Task, batches: list[Batch], share: Share, device: torch.device, report: Reporter
) -> None:
    view, wanted = _view_of(task, device), task.factories()
    captured = capture_sites(
        view, batches, wanted, holdout_every=task.holdout_every, share=share, report=report
    )
    store = LayerStore(Path(task.work), IN_MEMORY_RUN, share=share)
    for layer in sorted({layer for layers, _ in wanted.values() for layer in layers}):
        gathered = {
            f"{site}.{part}": accumulators.pop(layer)  # what is written needs no memory any more
            for site, found in captured.items()
            for part, accumulators in (("fit", found.fit), ("held", found.held))
            if layer in accumulators
        }
        store.save(layer, gathered, None)


def _view_of(task: Task, device: torch.device) -> ModelView:
    """The model, its weights mapped where they can be: then the ranks have them but once in memory."""
    if device.type == "cpu" and task.dtype == "auto":
        with suppress(UnsupportedModelError, CheckpointError):  # loading says what is wrong, if anything is
            return open_checkpoint(task.source)
    from optipfair_engine.checkpoints import load_model

    return locate(load_model(task.source, dtype=task.dtype, device=device))


def _described(error: BaseException) -> dict[str, Any]:
    """An error, so that the host can raise it again."""
    number = error.errno if isinstance(error, OSError) else None
    if system_says(error, {errno.ENOSPC}, ("No space left on device",)):
        number = errno.ENOSPC  # of safetensors, which has words for it alone
    return {
        "type": "MemoryError" if is_out_of_memory(error) else type(error).__name__,
        "code": getattr(error, "code", None),
        "errno": number,
        "message": str(error),
    }


def _own_output() -> int:
    """The descriptor of the host's pipe, which nothing else writes to from now on."""
    channel = os.dup(1)
    os.dup2(2, 1)
    return channel


class _Told:
    """What the host hears."""

    def __init__(self, channel: int) -> None:
        self._channel = channel

    def report(self, stage: str, done: int, total: int, message: str) -> None:
        """Tell progress."""
        self._tell({"report": [stage, done, total, message]})

    def announce(self, what: str, data: Mapping[str, object]) -> None:
        """Tell news."""
        self._tell({"announce": [what, dict(data)]})

    def _tell(self, line: Mapping[str, object]) -> None:
        os.write(self._channel, (json.dumps(line) + "\n").encode())


def _end_with(launcher: int) -> None:
    # PR_SET_PDEATHSIG, which torch sets to SIGINT, is heard between two statements of Python only
    while os.getppid() == launcher:
        time.sleep(_WATCH_SECONDS)
    os._exit(1)
