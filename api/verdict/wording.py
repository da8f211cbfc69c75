"""A check in words: numbers as people read them, bounds and intervals as one writes them."""

from __future__ import annotations

from api.models import Check


def number(value: float, beside: tuple[float | None, ...] = ()) -> str:
    """Six digits; all of them where six would make it look equal to a number that it stands beside."""
    short = f"{value:.0f}" if value.is_integer() and abs(value) < 1e15 else f"{value:.6g}"
    blurred = any(other is not None and other != value and float(short) == other for other in beside)
    return repr(value) if blurred else short


def value(check: Check) -> str:
    """The value, and its interval where the job reported one."""
    bounds = (check.min, check.max)
    if check.value is None:
        return "not reported"
    shown = number(check.value, bounds)
    if check.low is None and check.high is None:
        return shown
    ends = ("?" if end is None else number(end, bounds) for end in (check.low, check.high))
    return f"{shown} ({' … '.join(ends)})"


def bound(check: Check) -> str:
    """What the value had to hold."""
    parts = []
    if check.min is not None:
        parts.append(f"≥ {number(check.min)}")
    if check.max is not None:
        parts.append(f"≤ {number(check.max)}")
    return " and ".join(parts)


def outcome(check: Check) -> str:
    """The result, with the reason where there is one."""
    return f"{check.result}: {check.reason}" if check.reason else check.result
