"""What a person sees: a bar on a terminal, lines elsewhere; the verdict as a table."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from api.verdict import wording
from service.client.text import plain
from service.client.types import Job, Verdict

_COLOURS = {"pass": "green", "fail": "red", "inconclusive": "yellow", "none": "default"}
_LOG_WIDTH = 160
_STEP = 0.1


def console(*, stderr: bool = False) -> Console:
    """Where to print; a log that is no terminal gets lines long enough for a table."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else _LOG_WIDTH
    return Console(stderr=stderr, width=width, highlight=False, soft_wrap=False)


class ProgressDisplay:
    """Shows a job on its way, and then its files, on stderr.

    Use it as a context; `job` and `file` are the callbacks of the client.
    """

    def __init__(self) -> None:
        self._console = console(stderr=True)
        self._live = self._console.is_terminal
        self._job_bar = Progress(
            TextColumn("{task.description:<40}", markup=False),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
        )
        self._file_bar = Progress(
            TextColumn("{task.description:<40}", markup=False),
            BarColumn(),
            DownloadColumn(),
            console=self._console,
            transient=True,
        )
        self._said: tuple[str, str, float] = ("", "", 0.0)
        self._task: TaskID | None = None
        self._files: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if self._live:  # elsewhere a bar that was never shown would leave an empty line behind
            self._job_bar.stop()
            self._file_bar.stop()

    def say(self, line: str) -> None:
        """One line."""
        self._console.print(Text(plain(line)), soft_wrap=True)

    def job(self, job: Job) -> None:
        """The job has changed."""
        progress = job["progress"]
        stage, fraction = progress["stage"] or "", progress["fraction"] or 0.0
        words = plain(": ".join(part for part in (stage, progress["message"]) if part)) or job["state"]
        if self._live:
            if self._task is None:
                self._job_bar.start()
                self._task = self._job_bar.add_task(words[:40], total=1.0)
            shown = words if job["state"] == "running" else job["state"]
            self._job_bar.update(self._task, description=shown[:40], completed=fraction)
            if job["terminal"]:
                self._job_bar.stop()
            return
        state, before, at = self._said
        if job["state"] != state or stage != before or fraction >= at + _STEP:
            self._said = (job["state"], stage, fraction)
            self.say(f"{job['state']:<10} {fraction:4.0%}  {words}")

    def file(self, name: str, count: int, size: int) -> None:
        """A piece of a file has come."""
        self._piece("fetched", name, count, size)

    def sent(self, name: str, count: int, size: int) -> None:
        """A piece of a file has gone."""
        self._piece("sent", name, count, size)

    def _piece(self, done: str, name: str, count: int, size: int) -> None:
        if self._live:
            if not self._files:
                self._file_bar.start()
            if name not in self._files:
                self._files[name] = self._file_bar.add_task(plain(name)[:40], total=size)
            self._file_bar.update(self._files[name], completed=count)
        elif count >= size:
            self.say(f"{done:<10} {name} ({size:,} bytes)")


def print_verdict(job: Job, verdict: Verdict, link: str) -> None:
    """The verdict of an ended job, one row a check, on stdout."""
    out = console()
    if verdict["checks"]:
        table = Table("metric", "value", "bound", "outcome")
        for check in verdict["checks"]:
            cells = (check["metric"], wording.value(check), wording.bound(check), wording.outcome(check))
            table.add_row(*(Text(plain(cell)) for cell in cells), style=_COLOURS.get(check["result"], ""))
        out.print(table)
    out.print(Text(plain(_headline(job, verdict))), soft_wrap=True)
    out.print(Text(link), soft_wrap=True)


def _headline(job: Job, verdict: Verdict) -> str:
    if job["state"] == "succeeded":
        words = "the job has no gates" if not job["gates"] else f"verdict: {verdict['verdict']}"
        return f"the job succeeded; {words}"
    error = job["error"]
    why = f": {error['code']}: {error['message']}" if error else ""
    return f"the job {wording.ending(job['state'])}{why}"
