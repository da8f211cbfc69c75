"""Child processes of the embedded service: started in groups of their own, watched, restarted, stopped."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

MAX_LOG_BYTES = 20 * 1024 * 1024
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def _die_with_parent() -> None:
    """Ask the kernel (Linux) to kill this child when the service dies, even from SIGKILL.

    Runs between fork and exec, so it must not allocate much or import: the C library is loaded beforehand.
    """
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


@dataclass(frozen=True)
class ChildSpec:
    """What to run and how to end it."""

    name: str
    argv: Sequence[str]
    env: Mapping[str, str]
    log: Path
    stop_seconds: float = 10.0
    #: Children of a lower number are stopped first, those of the same number at the same time.
    stop_order: int = 0
    pass_fds: tuple[int, ...] = ()
    #: What the child reads on its standard input, at every start.
    document: bytes = b""


@dataclass
class Child:
    """One running (or crashed, waiting to be restarted) child."""

    spec: ChildSpec
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    crashes: int = 0
    restart_at: float = 0.0

    def start(self) -> None:
        """Start the process with its output appended to its log."""
        rotate(self.spec.log)
        with self.spec.log.open("ab") as log:
            self.process = subprocess.Popen(
                list(self.spec.argv),
                env=dict(self.spec.env),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                process_group=0,  # a terminal's Ctrl-C reaches the service only, which then stops in order
                pass_fds=self.spec.pass_fds,
                preexec_fn=_die_with_parent,  # noqa: PLW1509 - this process has one thread
            )
        self._tell(self.process)
        self.started = time.monotonic()

    def _tell(self, process: subprocess.Popen[bytes]) -> None:
        if process.stdin is None:
            return
        with suppress(BrokenPipeError), process.stdin:  # one that has ended already is restarted
            process.stdin.write(self.spec.document)

    def terminate(self) -> None:
        """SIGTERM to the process alone: it stops its own children, and in its own order."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()

    def kill(self) -> None:
        """SIGKILL to the whole group; a group that is already gone is fine."""
        if self.process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)

    @property
    def alive(self) -> bool:
        """Whether the process runs now."""
        return self.process is not None and self.process.poll() is None


def rotate(log: Path) -> None:
    """Keep one older file, so that a log never takes more than twice `MAX_LOG_BYTES` at a start."""
    if log.exists() and log.stat().st_size > MAX_LOG_BYTES:
        log.replace(log.with_suffix(log.suffix + ".1"))


def backoff(crashes: int) -> float:
    """Seconds to wait before restart number `crashes`: at once the first time, at most 15 s."""
    return 0.0 if crashes <= 1 else min(15.0, 0.5 * 2.0 ** (crashes - 2))


@dataclass
class Supervisor:
    """Keeps children running until `stop`."""

    say: Callable[[str], None]
    children: list[Child] = field(default_factory=list)
    #: A child that ran this long has recovered: its next crash counts as the first.
    stable_seconds: float = 30.0

    def start(self, spec: ChildSpec) -> Child:
        """Start a child and watch it from now on."""
        child = Child(spec)
        child.start()
        self.children.append(child)
        return child

    def check(self) -> None:
        """Notice crashed children and restart those whose back-off is over; call it a few times a second."""
        now = time.monotonic()
        for child in self.children:
            if child.alive:
                continue
            if child.restart_at == 0.0:
                self._note_crash(child, now)
            if child.restart_at <= now:
                child.restart_at = 0.0
                with suppress(OSError):  # no room for its log: tried again as one that has ended
                    child.start()

    def _note_crash(self, child: Child, now: float) -> None:
        child.crashes = 1 if now - child.started > self.stable_seconds else child.crashes + 1
        delay = backoff(child.crashes)
        child.restart_at = now + delay
        code = child.process.returncode if child.process else None
        when = f"in {delay:.1f} s" if delay else "now"
        end = describe_exit(code)
        with suppress(OSError):  # standard output may be a file on a full disk
            self.say(f"{child.spec.name} ended unexpectedly ({end}), restarting {when}; see {child.spec.log}")

    def stop(self) -> None:
        """SIGTERM, then SIGKILL after each child's time; the broker goes after those who use it."""
        for order in sorted({child.spec.stop_order for child in self.children}):
            group = [child for child in self.children if child.spec.stop_order == order]
            for child in group:
                child.terminate()
            for child in group:
                self._wait_for_end(child)

    def _wait_for_end(self, child: Child) -> None:
        if child.process is None:
            return
        try:
            child.process.wait(child.spec.stop_seconds)
        except subprocess.TimeoutExpired:
            self.say(f"{child.spec.name} did not stop within {child.spec.stop_seconds:.0f} s, killing it")
            child.kill()
            child.process.wait()

    def kill(self) -> None:
        """SIGKILL to all (a second Ctrl-C)."""
        for child in reversed(self.children):
            child.kill()


def describe_exit(code: int | None) -> str:
    """`exit code 3` or `signal 9`."""
    if code is None:
        return "unknown"
    return f"signal {-code}" if code < 0 else f"exit code {code}"
