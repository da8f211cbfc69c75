"""The reload check's second process, forked from the preloaded server instead of started anew.

It has never held the model: the server imports torch and transformers and nothing else. It joins the engine's
process group, so whatever ends the engine ends it too.
"""

from __future__ import annotations

import json
import os
import tempfile
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing import forkserver, parent_process
from multiprocessing.connection import wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optipfair_engine.errors import ReloadCheckError
from worker.engine.failures import MachineError, describe
from worker.engine.server import make_context

if TYPE_CHECKING:
    from torch import Tensor

    from optipfair_engine.options.words import ComputeDtype


def forked_runner(
    folder: Path,
    token_ids: Sequence[Sequence[int]],
    device: str = "cpu",
    attention: str | None = None,
    compute_dtype: ComputeDtype = "checkpoint",
) -> Tensor:
    """Logits of a saved model from a process of its own (a `ReloadRunner` of the engine).

    Raises:
        MachineError: the process was killed, or ran out of memory.
        ReloadCheckError: it did not load.
    """
    from optipfair_engine.checkpoints.reload import ReloadItem, read_answer, write_request

    with tempfile.TemporaryDirectory(prefix="optipfair-reload-") as scratch:
        asked, answer, failure = (Path(scratch, name) for name in ("request", "answer", "failure"))
        write_request(asked, [ReloadItem(folder, token_ids, attention, compute_dtype)], device)
        exitcode = _run(asked, answer, failure)
        if exitcode != 0:
            raise _failure(exitcode, json.loads(failure.read_text()) if failure.exists() else None)
        return read_answer(answer)[0]


def _failure(exitcode: int | None, told: Mapping[str, Any] | None) -> Exception:
    """What a failed process means: one that told nothing was killed, which is no fault of the model."""
    if told is None:
        how = f"signal {-exitcode}" if exitcode is not None and exitcode < 0 else f"exit code {exitcode}"
        return MachineError(
            "reload_check_killed",
            f"the process of the reload check ended by {how}; by signal 9 most often because memory ran out",
        )
    if told["retry"]:
        return MachineError(told["code"], told["message"])
    return ReloadCheckError(f"the saved checkpoint did not reload in a new process: {told['reason']}")


def _run(asked: Path, answer: Path, failure: Path) -> int | None:
    arguments = (os.getpgid(0), str(asked), str(answer), str(failure))
    context = make_context()
    _use_our_own_server()
    process = context.Process(  # type: ignore[attr-defined]
        target=_reload, args=arguments, name="optipfair-reload"
    )
    process.start()
    process.join()
    exitcode: int | None = process.exitcode
    return exitcode


def _use_our_own_server() -> None:
    """Fork from the server that this process came from.

    `ensure_running` does not know it in a child (it looks for a server that this very process has started)
    and would start a second one, which imports torch anew. Where the internals differ, that happens.
    """
    server: Any = getattr(forkserver, "_forkserver", None)
    if parent_process() is not None and getattr(server, "_forkserver_address", None) is not None:
        server.ensure_running = lambda: None


def _reload(group: int, asked: str, answer: str, failure: str) -> None:
    with suppress(ProcessLookupError, PermissionError):  # spawned (macOS) processes are in the group already
        os.setpgid(0, group)
    _die_with_engine()
    from optipfair_engine.checkpoints import reload

    try:
        reload.main(asked, answer)
    except Exception as error:
        told = {**describe(error), "reason": f"{type(error).__name__}: {error}"}
        Path(failure).write_text(json.dumps(told))
        os._exit(1)
    os._exit(0)


def _die_with_engine() -> None:
    parent = parent_process()
    if parent is not None:
        sentinel = parent.sentinel
        threading.Thread(target=lambda: (wait([sentinel]), os._exit(1)), daemon=True).start()
