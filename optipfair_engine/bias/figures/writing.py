"""Draw many figures: in at most two processes of their own, fed through a pipe while the model still runs.

They are plain subprocesses and not ``multiprocessing``'s, which would run a script without a main guard (the
guide's examples) again, or fork a process that holds torch's threads.
"""

from __future__ import annotations

import gc
import json
import pickle
import queue
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import IO, TypeAlias

from optipfair_engine.bias.figures.canvas import save
from optipfair_engine.bias.figures.drawing import draw
from optipfair_engine.bias.figures.kinds import FORMATS, FigureData, Style
from optipfair_engine.errors import EngineError, InvalidOptionError
from optipfair_engine.progress import Reporter, null_reporter

PROCESSES = 2
#: Starting a process costs about as much as drawing this many figures.
WORTH_A_PROCESS = 6

Job: TypeAlias = tuple[FigureData, Style, Path]

_SERVE = (
    "import json,sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from optipfair_engine.bias.figures.writing import serve; serve()"
)


class FigureError(EngineError):
    """A figure could not be drawn."""

    code = "drawing_failed"


def check_format(figure_format: str) -> str:
    """The format, if figures can be written in it.

    Raises:
        InvalidOptionError: they can't.
    """
    if figure_format not in FORMATS:
        raise InvalidOptionError(f"figure_format must be one of {', '.join(FORMATS)}, got {figure_format!r}")
    return figure_format


def draw_to_file(data: FigureData, style: Style, path: Path) -> None:
    """Draw one figure in this process."""
    save(draw(data, style), path, style.dpi)


def serve() -> None:
    """What a drawing process runs: pickled jobs in, one line of JSON each out, until the input ends."""
    source, answers = sys.stdin.buffer, sys.stdout
    while True:
        try:
            data, style, path = pickle.load(source)  # noqa: S301  # our parent wrote it
        except EOFError:
            return
        error = None
        try:
            draw_to_file(data, style, path)
        except Exception as failure:  # handed to the parent, which raises it
            error = f"{type(failure).__name__}: {failure}"
        gc.collect()  # a figure's 45 MB of pixels hang in a reference cycle: a few of them are much memory
        answers.write(json.dumps({"error": error}) + "\n")
        answers.flush()


class FigureWriter:
    """Takes figures as data and draws them, all finished when the ``with`` block ends.

    With fewer than ``WORTH_A_PROCESS`` expected, each is drawn at once in this process. At most a few
    figures wait (``submit`` blocks), so memory doesn't grow with their number.
    """

    def __init__(self, expected: int, *, report: Reporter = null_reporter) -> None:
        self._expected, self._report = expected, report
        self._jobs: queue.Queue[Job | None] = queue.Queue(maxsize=4 * PROCESSES)
        self._threads: list[threading.Thread] = []
        self._errors: list[str] = []
        self._lock = threading.Lock()
        self.drawn = 0

    def __enter__(self) -> FigureWriter:
        if self._expected >= WORTH_A_PROCESS and sys.executable:
            self._threads = [threading.Thread(target=self._feed, daemon=True) for _ in range(PROCESSES)]
            for thread in self._threads:
                thread.start()
        return self

    def submit(self, data: FigureData, style: Style, path: Path) -> None:
        """Draw a figure to ``path``, now or soon."""
        if self._threads:
            self._jobs.put((data, style, path))
            return
        draw_to_file(data, style, path)
        self.drawn += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._drop_waiting()
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            while thread.is_alive():
                thread.join(timeout=0.5)
                self._tell()
        self._tell()
        if kind is None and self._errors:
            raise FigureError(f"{len(self._errors)} of {self._expected} figures failed: {self._errors[0]}")

    def _drop_waiting(self) -> None:
        while True:
            try:
                self._jobs.get_nowait()
            except queue.Empty:
                return

    def _tell(self) -> None:
        """Report from the caller's own thread: a reporter need not stand several at once."""
        if self.drawn:
            self._report("plot", self.drawn, max(self._expected, self.drawn), f"figure {self.drawn}")

    def _feed(self) -> None:
        """One thread: start a process and hand it jobs until there are none; every job is answered."""
        command = [sys.executable, "-c", _SERVE, json.dumps(sys.path)]
        try:
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        except OSError as failure:
            reason = f"no drawing process could be started ({failure})"
            self._take_all(lambda _: reason)
            return
        with process:
            self._take_all(lambda job: _hand_over(process.stdin, process.stdout, job))
            if process.stdin is not None:
                process.stdin.close()

    def _take_all(self, draw_job: Callable[[Job], str | None]) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                error = draw_job(job)
            except (OSError, ValueError) as failure:
                error = f"the drawing process ended ({failure})"
            with self._lock:
                self.drawn += error is None
                self._errors += [error] if error is not None else []


def _hand_over(jobs: IO[bytes] | None, answers: IO[bytes] | None, job: Job) -> str | None:
    if jobs is None or answers is None:
        raise ValueError("no pipe")
    pickle.dump(job, jobs)
    jobs.flush()
    answer = json.loads(answers.readline())
    error: str | None = answer["error"]
    return error
