"""What an attempt says of itself: a bounded number of lines, of which the newest are kept, in the database.

Progress, warnings and outlines of errors, never messages that may quote a prompt; keys, tokens and this
machine's paths are taken out of every line.
"""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from worker.log import logger

#: Bytes of an attempt's lines that are kept.
LOG_BYTES = 64 * 1024
#: Characters of a line.
_LINE = 500
#: Seconds between two writes.
_PAUSE = 2.0
_SECRET = re.compile(
    r"\b(?:ofk_|hf_|gh[pousr]_|github_pat_|sk-)[\w-]{8,}"
    r"|\beyJ[\w-]+\.[\w-]+(?:\.[\w-]*)?"
    r"|\b(?:AKIA|ASIA)[A-Z0-9]{12,}"
    r"|(?<=Bearer )\S+|(?<=://)[^/@\s]+:[^/@\s]+@"
)
_PATH = re.compile(r"(?<![\w:/.-])(?:~|[A-Za-z]:)?(?:[/\\][^\s/\\\"':,;()]+)+[/\\]([^\s/\\\"',;()]*)")


def clean(text: str) -> str:
    """A line without keys and tokens, and with the last part of each path alone."""
    return _PATH.sub(r"\1", _SECRET.sub("[secret]", text))[:_LINE]


class AttemptLog:
    """Lines of one attempt; `write` gets the kept ones and how many older ones were dropped."""

    def __init__(
        self,
        write: Callable[[Sequence[str], int], None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._write, self._clock = write, clock
        self._lines: deque[str] = deque()
        self._bytes = self._dropped = 0
        self._written_at: float | None = None
        self._fresh = False

    def say(self, text: str, level: str = "info") -> None:
        """Add a line for each line of the text."""
        moment = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%f}"[:-3]
        for line in text.splitlines():
            self._add(f"{moment}Z {level:7} {clean(line)}")
        if self._written_at is None or self._clock() - self._written_at >= _PAUSE:
            self.flush()

    def _add(self, line: str) -> None:
        self._lines.append(line)
        self._bytes += len(line.encode(errors="replace")) + 1
        self._fresh = True
        while self._bytes > LOG_BYTES:
            self._bytes -= len(self._lines.popleft().encode(errors="replace")) + 1
            self._dropped += 1

    def flush(self) -> None:
        """Write what is new; a database that is away, or a job that is gone, is no error of the attempt."""
        if not self._fresh:
            return
        try:
            self._write(list(self._lines), self._dropped)
        except Exception as error:
            logger.warning("attempt.log_not_written", error=type(error).__name__)
        else:
            self._fresh = False
        self._written_at = self._clock()
