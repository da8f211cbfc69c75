"""The engine's process: what it says arrives, its deaths are told apart, it never outlives its supervisor."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from optipfair_engine.errors import CheckpointError
from optipfair_engine.headers import HeaderError
from worker.attempt.outcomes import of_exit
from worker.engine.failures import MachineError, describe, outline
from worker.engine.server import thread_environment
from worker.inputs.hub import HubUnavailableError

# A supervisor in a process of its own, with a fork server that does not load torch: quick, and killable.
SUPERVISOR = """
import json, multiprocessing, sys
from pathlib import Path
from worker.engine.process import Ended, EngineProcess

if __name__ == "__main__":
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["worker.engine.main"])
    task = json.loads(sys.argv[1])
    engine = EngineProcess(context, task, Path(sys.argv[2]))
    print(engine.pid, flush=True)
    while True:
        message = engine.receive(0.1)
        if isinstance(message, Ended):
            print(json.dumps({"exitcode": message.exitcode}), flush=True)
            break
        if message is not None:
            print(json.dumps(message), flush=True)
    engine.stop()
    print("torch" in sys.modules, flush=True)
"""


def supervise(tmp_path: Path, task: dict[str, object]) -> subprocess.Popen[str]:
    script = tmp_path / "supervisor.py"
    script.write_text(SUPERVISOR)
    return subprocess.Popen(
        [sys.executable, str(script), json.dumps(task), str(tmp_path / "engine.log")],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    )


def task_with(hook: str) -> dict[str, object]:
    return {"kind": "no such kind", "spec": {}, "output": "/nonexistent", "hooks": {"engine": hook}}


def gone(pid: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def test_an_unforeseen_error_is_reported_without_its_text(tmp_path: Path) -> None:
    lines = supervise(tmp_path, task_with("")).communicate(timeout=60)[0].splitlines()
    error = json.loads(lines[1])
    assert error["code"] == "engine_failed"
    assert error["retry"] is False
    assert str(tmp_path) not in error["message"]
    assert json.loads(lines[2]) == {"exitcode": 1}
    assert lines[3] == "False"  # the supervisor has not imported torch
    log = (tmp_path / "engine.log").read_text()
    assert log.startswith("KeyError\n") and "runners.py" in log
    assert "no such kind" not in log + error["trace"]  # messages may quote prompts


def test_death_by_signal_9_is_seen(tmp_path: Path) -> None:
    lines = supervise(tmp_path, task_with("die")).communicate(timeout=60)[0].splitlines()
    assert json.loads(lines[1]) == {"exitcode": -9}


def test_an_engine_does_not_outlive_a_supervisor_that_is_killed(tmp_path: Path) -> None:
    process = supervise(tmp_path, task_with("hold:60"))
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    wait_for_own_group(pid)
    process.kill()
    process.wait()
    assert gone(pid, 5.0)


RESTARTED = """
import multiprocessing, os, signal, sys
from multiprocessing import forkserver
from pathlib import Path
from worker.engine.process import EngineProcess
from worker.engine.server import start_server

if __name__ == "__main__":
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["worker.engine.main"])
    start_server()
    first = forkserver._forkserver._forkserver_pid
    os.kill(first, signal.SIGKILL)
    os.waitid(os.P_PID, first, os.WEXITED | os.WNOWAIT)  # a kill takes its time
    engine = EngineProcess(context, {"kind": "none"}, Path(sys.argv[1]))
    second = forkserver._forkserver._forkserver_pid
    told = [Path(f"/proc/{pid}/environ").read_bytes() for pid in (second, engine.pid)]
    engine.stop()
    print(first != second, b"s3cret" in b"".join(told), os.environ["OPTIPFAIR_DATABASE_URL"])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_fork_server_that_is_started_again_has_no_secrets_either(tmp_path: Path) -> None:
    script = tmp_path / "restarted.py"
    script.write_text(RESTARTED)
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3]), "OPTIPFAIR_DATABASE_URL": "s3cret"}
    command = [sys.executable, str(script), str(tmp_path / "engine.log")]
    done = subprocess.run(command, capture_output=True, text=True, env=environ, timeout=60, check=True)
    assert done.stdout.split() == ["True", "False", "s3cret"]


def wait_for_own_group(pid: int) -> None:
    deadline = time.monotonic() + 30
    while os.getpgid(pid) != pid:
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("exitcode", "code"),
    [(-9, "engine_killed"), (-signal.SIGSEGV, "engine_crashed"), (255, "engine_crashed")],
)
def test_an_end_without_a_word_is_the_machines_fault(exitcode: int, code: str) -> None:
    assert of_exit(exitcode).code == code


def test_errors_are_sorted_into_the_users_and_the_machines() -> None:
    from optipfair_engine.errors import NonFiniteWeightsError, ProcessLostError

    users = describe(NonFiniteWeightsError("model.norm.weight holds NaN"))
    assert users == {
        "code": "weights_not_finite",
        "message": "model.norm.weight holds NaN",
        "retry": False,
    }
    assert describe(MemoryError())["retry"] is True
    assert describe(HeaderError("model_truncated", "short"))["code"] == "model_truncated"
    assert describe(HubUnavailableError("away"))["retry"] is True
    lost = describe(ProcessLostError("process 2 of 2 was ended by SIGKILL"))
    assert (lost["code"], lost["retry"]) == ("process_lost", True)


def torchs_out_of_memory() -> RuntimeError:
    import torch

    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    return caught.value


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (torchs_out_of_memory, "out_of_memory"),
        (lambda: OSError(errno.ENOMEM, "Cannot allocate memory"), "out_of_memory"),
        (lambda: OSError(errno.EIO, "Input/output error"), "io_error"),
        (lambda: MachineError("reload_check_killed", "signal 9"), "reload_check_killed"),
    ],
)
def test_the_machines_failures_are_tried_again_though_the_engine_blames_the_model(
    make: Callable[[], Exception], code: str
) -> None:
    error = make()
    assert describe(error)["code"] == code
    blamed = CheckpointError("model.gguf can't be read as a GGUF model: RuntimeError")
    blamed.__cause__ = error
    assert (describe(blamed)["code"], describe(blamed)["retry"]) == (code, True)


def test_a_files_name_is_no_sign_of_the_machine() -> None:
    for name in ("out of memory.json", "Input/output error"):
        assert describe(PermissionError(errno.EACCES, "Permission denied", name))["code"] == "engine_failed"


def test_the_outline_of_an_error_has_types_and_places_and_no_words() -> None:
    try:
        try:
            raise ValueError("the prompt 'my diary'")
        except ValueError as error:
            raise CheckpointError("my diary") from error
    except CheckpointError as error:
        text = outline(error)
    assert "diary" not in text
    assert text.startswith("CheckpointError\n  ") and "\nValueError\n  " in text
    assert "test_the_outline_of_an_error" in text


def test_a_model_that_really_cannot_be_read_is_the_users_error() -> None:
    for cause in (OSError("config.json is missing"), RuntimeError("size mismatch"), KeyError("w")):
        blamed = CheckpointError("can't be loaded")
        blamed.__cause__ = cause
        assert (describe(blamed)["code"], describe(blamed)["retry"]) == ("model_unreadable", False)
    assert describe(CheckpointError("the prompt 'out of memory' is odd"))["retry"] is False


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        RuntimeError("I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_named_whoever_reports_it(error: Exception) -> None:
    assert describe(error)["code"] == "storage_full"
    outer = ValueError("could not save")
    outer.__cause__ = error
    assert describe(outer) == describe(error)


@pytest.mark.parametrize(
    ("cores", "processes", "threads", "expected"), [(8, 2, None, "4"), (2, 4, None, "1"), (8, 1, 3, "3")]
)
def test_cores_are_divided_among_engines(
    cores: int, processes: int, threads: int | None, expected: str
) -> None:
    environment = thread_environment(cores, processes, threads)
    assert environment["OMP_NUM_THREADS"] == expected
    assert environment["OMP_WAIT_POLICY"] == "PASSIVE"
