"""Gates: bounds on metrics that turn a job's result into pass, fail or inconclusive."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from jobs.rows import Check

RELOAD_LEVELS = {"none": 0.0, "structure": 1.0, "logits": 2.0}
"""`reload_check` says which level passed; a gate on it compares these numbers."""
PASS, FAIL, INCONCLUSIVE, NONE = "pass", "fail", "inconclusive", "none"


def evaluate(gates: Sequence[Mapping[str, Any]], metrics: Mapping[str, Any]) -> tuple[str, list[Check]]:
    """The verdict and one check a gate.

    A metric that is absent, not a finite number, or whose interval (`<metric>_low` … `<metric>_high`)
    reaches over the bound or is not known makes its check inconclusive, never a pass. One failed check fails
    the whole.
    """
    checks = [_check(gate, metrics) for gate in gates]
    results = {check.result for check in checks}
    if not checks:
        return NONE, []
    if FAIL in results:
        return FAIL, checks
    return (INCONCLUSIVE if INCONCLUSIVE in results else PASS), checks


def _check(gate: Mapping[str, Any], metrics: Mapping[str, Any]) -> Check:
    name, low, high = gate["metric"], gate.get("min"), gate.get("max")
    value = _value(name, metrics.get(name))
    if value is None:
        return Check(name, INCONCLUSIVE, None, low, high, "the job did not report this metric as a number")
    if any(limit in metrics and metrics[limit] is None for limit in _limits(name)):
        return Check(name, INCONCLUSIVE, value, low, high, _why_uncertain(name, metrics))
    ends = interval(name, metrics).values()
    span = sorted({value, *(end for end in ends if end is not None)})
    verdicts = {_within(point, low, high) for point in (span[0], value, span[-1])}
    if verdicts == {True}:
        return Check(name, PASS, value, low, high)
    if verdicts == {False} and _same_side(span, low, high):
        return Check(name, FAIL, value, low, high)
    return Check(
        name,
        INCONCLUSIVE,
        value,
        low,
        high,
        f"the interval {span[0]:g} … {span[-1]:g} reaches over the bound",
    )


def interval(name: str, metrics: Mapping[str, Any]) -> dict[str, float | None]:
    """The ends of a metric's interval, by `low` and `high`; None for one that is not known."""
    return dict(zip(("low", "high"), (_number(metrics.get(limit)) for limit in _limits(name)), strict=True))


def _limits(name: str) -> list[str]:
    return [f"{name}_{end}" for end in ("low", "high")]


def _why_uncertain(name: str, metrics: Mapping[str, Any]) -> str:
    """Why a number has no interval: what its job says of the prompts that it was measured on."""
    step, dot, own = name.rpartition(".")
    counted = "control_pairs" if own in ("noise_floor", "effect_over_noise") else "templates"
    count = _number(metrics.get(f"{step}{dot}{counted}"))
    said = f"there is no interval ({own}_low … {own}_high) that would say how certain this is"
    if counted == "templates" and count is not None and count < 2:
        return f"{said}: the prompts come from one template, and an interval takes several"
    if counted == "control_pairs" and count is not None:
        return f"{said}: it takes prompts and control pairs of several templates each"
    return f"{said}: it takes several independent measurements, as prompts of several templates"


def _within(value: float, low: float | None, high: float | None) -> bool:
    return (low is None or value >= low) and (high is None or value <= high)


def _same_side(span: Sequence[float], low: float | None, high: float | None) -> bool:
    """Whether the whole interval lies on one side: an interval around both bounds decides nothing."""
    return (low is not None and span[-1] < low) or (high is not None and span[0] > high)


def _value(name: str, value: Any) -> float | None:
    if name.rpartition(".")[2] == "reload_check" and isinstance(value, str):
        return RELOAD_LEVELS.get(value)
    return _number(value)


def _number(value: Any) -> float | None:
    if isinstance(value, bool):
        return float(value)
    if isinstance(value, int | float) and math.isfinite(value):
        return float(value)
    return None
