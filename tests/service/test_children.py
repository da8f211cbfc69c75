"""Children are restarted after a crash, stopped in order, and die with a service that is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from service.children import ChildSpec, Supervisor, backoff, describe_exit

NOTES_ITS_STOP = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (print(time.time()), sys.exit(0)))
print("on", flush=True)
time.sleep(60)
"""


def spec(tmp_path: Path, code: str, stop_seconds: float = 10.0) -> ChildSpec:
    argv = [sys.executable, "-c", code]
    return ChildSpec("child", argv, dict(os.environ), tmp_path / "child.log", stop_seconds=stop_seconds)


def check_until(supervisor: Supervisor, condition) -> bool:
    deadline = time.monotonic() + 20
    while not condition():
        if time.monotonic() > deadline:
            return False
        supervisor.check()
        time.sleep(0.02)
    return True


def test_a_crash_is_told_and_the_child_restarted(tmp_path: Path) -> None:
    said: list[str] = []
    supervisor = Supervisor(said.append)
    child = supervisor.start(spec(tmp_path, "import time; time.sleep(60)"))
    assert child.process is not None
    first = child.process.pid
    os.kill(first, signal.SIGKILL)
    try:
        assert check_until(supervisor, lambda: child.alive and child.process and child.process.pid != first)
        assert len(said) == 1 and "signal 9" in said[0]
    finally:
        supervisor.stop()


def test_a_child_that_keeps_crashing_is_restarted_ever_more_slowly() -> None:
    delays = [backoff(crashes) for crashes in range(1, 12)]
    assert delays == sorted(delays)
    assert delays[0] == 0.0 and delays[-1] == 15.0


def test_a_child_that_ignores_sigterm_is_killed_after_its_time(tmp_path: Path) -> None:
    code = "import signal, time; signal.signal(15, signal.SIG_IGN); print('on', flush=True); time.sleep(60)"
    supervisor = Supervisor(lambda _line: None)
    child = supervisor.start(spec(tmp_path, code, stop_seconds=0.2))
    assert check_until(supervisor, lambda: "on" in (tmp_path / "child.log").read_text())
    supervisor.stop()
    assert child.process is not None and child.process.returncode == -signal.SIGKILL


def test_the_broker_is_stopped_after_those_who_use_it(tmp_path: Path) -> None:
    supervisor = Supervisor(lambda _line: None)
    for name, order in (("broker", 1), ("worker", 0)):
        argv = [sys.executable, "-c", NOTES_ITS_STOP]
        supervisor.start(ChildSpec(name, argv, dict(os.environ), tmp_path / name, stop_order=order))
    assert check_until(supervisor, lambda: all((tmp_path / n).read_text() for n in ("broker", "worker")))
    supervisor.stop()
    stopped = {name: float((tmp_path / name).read_text().split()[-1]) for name in ("broker", "worker")}
    assert stopped["worker"] <= stopped["broker"]


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
def test_children_die_with_a_service_that_is_killed(tmp_path: Path) -> None:
    script = f"""
import os, sys, time
from pathlib import Path
from service.children import ChildSpec, Supervisor
sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
child = Supervisor(print).start(ChildSpec("c", sleep, dict(os.environ), Path({str(tmp_path / "log")!r})))
print(child.process.pid, flush=True)
time.sleep(60)
"""
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    psutil.wait_procs([psutil.Process(pid)] if psutil.pid_exists(pid) else [], timeout=5)
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_exits_are_described() -> None:
    assert describe_exit(-9) == "signal 9"
    assert describe_exit(3) == "exit code 3"
