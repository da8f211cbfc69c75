"""The reload check's own process: its death is told apart from a checkpoint that does not load."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from optipfair_engine.errors import ReloadCheckError
from worker.engine import reload_check
from worker.engine.failures import MachineError, describe
from worker.engine.reload_check import forked_runner


def fails_with(monkeypatch: pytest.MonkeyPatch, exitcode: int, told: dict[str, object] | None) -> None:
    def run(_asked: Path, _answer: Path, failure: Path) -> int:
        if told is not None:
            failure.write_text(json.dumps(told))
        return exitcode

    monkeypatch.setattr(reload_check, "_run", run)


@pytest.mark.parametrize("exitcode", [-signal.SIGKILL, -signal.SIGTERM, 255])
def test_a_process_that_was_killed_is_the_machines_fault(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, exitcode: int
) -> None:
    fails_with(monkeypatch, exitcode, None)
    with pytest.raises(MachineError) as caught:
        forked_runner(tmp_path, [[1]])
    assert describe(caught.value)["retry"] is True


@pytest.mark.parametrize(
    ("error", "expected"), [(MemoryError(), MachineError), (ValueError("no such tensor"), ReloadCheckError)]
)
def test_what_the_process_says_decides(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception, expected: type[Exception]
) -> None:
    fails_with(monkeypatch, 1, {**describe(error), "reason": f"{type(error).__name__}: {error}"})
    with pytest.raises(expected, match="memory" if expected is MachineError else "no such tensor"):
        forked_runner(tmp_path, [[1]])


def test_the_process_tells_its_failure(tmp_path: Path) -> None:
    failure = tmp_path / "failure"
    (tmp_path / "asked").write_text("{}")
    child = os.fork()
    if child == 0:
        reload_check._reload(os.getpgid(0), str(tmp_path / "asked"), str(tmp_path / "answer"), str(failure))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    told = json.loads(failure.read_text())
    assert told["retry"] is False and told["reason"].startswith("KeyError")
