"""What a person should know of a job and its result: one list of `{code, message}`, whatever its kind.

Some are known when a job is admitted, the others the engine reports among its metrics.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jobs.rows import JsonObject, warning

#: The code of a warning that came as a text alone.
NOTE = "note"
MAX_WARNINGS = 64


def of_metrics(metrics: Mapping[str, Any]) -> list[JsonObject]:
    """The warnings among a job's metrics; those of a pipeline say which step they are about."""
    named = [name for name in metrics if name.endswith(".warnings")]
    if not named:
        return [warning(code, text) for code, text in _told(metrics)]
    found = []
    for step in sorted({name.partition(".")[0] for name in metrics if "." in name}):
        own = {
            name.partition(".")[2]: value for name, value in metrics.items() if name.startswith(f"{step}.")
        }
        found += [warning(code, f"step {step}: {text}") for code, text in _told(own)]
    return found


def together(*lists: Sequence[JsonObject]) -> list[JsonObject]:
    """All of them, each once."""
    by_text = {item["message"]: item for items in reversed(lists) for item in reversed(items)}
    return list(reversed(by_text.values()))[:MAX_WARNINGS]


def _told(metrics: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Code and text of each warning of one engine call: its own, and those of its parts (fairness)."""
    parts = [metrics, *(value for value in metrics.values() if isinstance(value, Mapping))]
    for items in (part.get("warnings") for part in parts):
        for item in items if isinstance(items, list | tuple) else ():
            if isinstance(item, Mapping) and "message" in item:
                yield str(item.get("code") or NOTE), str(item["message"])
            elif isinstance(item, str):
                yield NOTE, item
