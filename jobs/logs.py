"""Structured logs of the service's processes: one JSON object a line, with nothing secret in it."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import MutableMapping
from contextlib import suppress
from typing import Any, TextIO, cast

import structlog
from structlog.typing import Processor

from jobs.settings import Settings

REDACTED = "[redacted]"
_SECRET_NAMES = re.compile(
    r"authorization|api_?key|secret|password|token|cookie|prompt|texts?$", re.IGNORECASE
)
_SECRET_VALUES = re.compile(
    r"ofk_[A-Za-z0-9_-]{8,}|whsec_[A-Za-z0-9+/=_-]{8,}|(?<=/v1/download/)[A-Za-z0-9_.-]+"
    r"|(?<=[Bb]earer )[^\s\"']+|(?<=://)[^/\s:@]*:[^/\s@]*(?=@)"
)


def redact(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Remove keys, tokens, passwords and prompt text, by the field's name and by the value's shape."""
    return {name: REDACTED if _SECRET_NAMES.search(name) else _clean(value) for name, value in event.items()}


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return _SECRET_VALUES.sub(REDACTED, value)
    if isinstance(value, dict):
        return redact(None, "", value)
    if isinstance(value, list | tuple):
        return [_clean(item) for item in value]
    return value


class _Lossy:
    """A stream for logs: on a full disk their lines are lost, and nothing else that the process does."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        with suppress(OSError):
            self._stream.write(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()


class _NamedLogger(structlog.WriteLogger):
    """Writes lines, and knows its name as the standard library's loggers do."""

    def __init__(self, file: TextIO, name: str) -> None:
        super().__init__(file)
        self.name = name


def configure_logging(settings: Settings, process: str = "", *, stream: TextIO | None = None) -> None:
    """Set up structlog and the standard library's logging; `process`, if given, is in every line.

    Called once, by an entry point. Request and job ids come from `structlog.contextvars`. Our own lines
    are written by structlog directly, which takes a third of the time of a way through logging; the lines
    of libraries look the same.
    """
    out = cast("TextIO", _Lossy(stream or sys.stderr))
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _naming(process),
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.PositionalArgumentsFormatter(), *_renderers(settings)],
        wrapper_class=structlog.make_filtering_bound_logger(settings.log_level),
        logger_factory=lambda *names: _NamedLogger(out, names[0] if names else ""),
        cache_logger_on_first_use=False,
    )
    _configure_libraries(settings, out, shared)


def _configure_libraries(settings: Settings, out: TextIO, shared: list[Processor]) -> None:
    """The same lines from whatever logs through the standard library."""
    handler = logging.StreamHandler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *_renderers(settings)],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level)


def _renderers(settings: Settings) -> list[Processor]:
    # Exceptions become text before the redaction, which then sees what they say.
    if settings.log_format == "console":
        return [structlog.processors.format_exc_info, redact, structlog.dev.ConsoleRenderer(colors=False)]
    return [structlog.processors.format_exc_info, redact, structlog.processors.JSONRenderer()]


def _naming(process: str) -> Processor:
    def name(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        if process:
            event.setdefault("process", process)
        return event

    return name
