"""A check in words: numbers as people read them, bounds and intervals as one writes them.

Checks come as JSON has them, and nothing but the standard library is needed: the client says the same words.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Check = Mapping[str, Any]


def number(value: float, beside: tuple[float | None, ...] = ()) -> str:
    """Six digits; all of them where six would make it look equal to a number that it stands beside."""
    short = f"{value:.0f}" if float(value).is_integer() and abs(value) < 1e15 else f"{value:.6g}"
    blurred = any(other is not None and other != value and float(short) == other for other in beside)
    return repr(value) if blurred else short


def value(check: Check) -> str:
    """The value, and its interval where the job reported one."""
    bounds = (check["min"], check["max"])
    if check["value"] is None:
        return "not reported"
    shown = number(check["value"], bounds)
    ends = (check.get("low"), check.get("high"))
    if ends == (None, None):
        return shown
    return f"{shown} ({' … '.join('?' if end is None else number(end, bounds) for end in ends)})"


def bound(check: Check) -> str:
    """What the value had to hold."""
    signs = (("≥", check["min"]), ("≤", check["max"]))
    return " and ".join(f"{sign} {number(limit)}" for sign, limit in signs if limit is not None)


def outcome(check: Check) -> str:
    """The result, with the reason where there is one."""
    return f"{check['result']}: {check['reason']}" if check["reason"] else str(check["result"])


def ending(state: str) -> str:
    """How a job ended, as the rest of a sentence that begins with "The job"."""
    return {"timed_out": "timed out", "cancelled": "was cancelled"}.get(state, state)
