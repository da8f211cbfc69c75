"""Gates: pass only on proof, fail only on proof, inconclusive between."""

from __future__ import annotations

import math
from typing import Any

import pytest

from jobs.verdict import evaluate

AT_MOST_2 = [{"metric": "m", "max": 2.0}]
AT_LEAST_2 = [{"metric": "m", "min": 2.0}]
BETWEEN = [{"metric": "m", "min": 1.0, "max": 2.0}]


@pytest.mark.parametrize(
    ("gates", "metrics", "verdict"),
    [
        ([], {"m": 1}, "none"),
        (AT_MOST_2, {"m": 2}, "pass"),
        (AT_MOST_2, {"m": 2.0000001}, "fail"),
        (AT_LEAST_2, {"m": 2}, "pass"),
        (AT_LEAST_2, {"m": 1.9}, "fail"),
        (BETWEEN, {"m": 1.5}, "pass"),
        (BETWEEN, {"m": 0.5}, "fail"),
        (AT_MOST_2, {}, "inconclusive"),
        (AT_MOST_2, {"m": None}, "inconclusive"),
        (AT_MOST_2, {"m": "1"}, "inconclusive"),
        (AT_MOST_2, {"m": math.nan}, "inconclusive"),
        (AT_MOST_2, {"m": -math.inf}, "inconclusive"),
        (AT_LEAST_2, {"m": True}, "fail"),
        (AT_MOST_2, {"m": 1.5, "m_low": 1.0, "m_high": 1.9}, "pass"),
        (AT_MOST_2, {"m": 1.5, "m_low": 1.0, "m_high": 2.1}, "inconclusive"),
        (AT_MOST_2, {"m": 2.5, "m_low": 1.9, "m_high": 3.0}, "inconclusive"),
        (AT_MOST_2, {"m": 2.5, "m_low": 2.1, "m_high": 3.0}, "fail"),
        (AT_MOST_2, {"m": 1.5, "m_low": None, "m_high": None}, "inconclusive"),
        (BETWEEN, {"m": 1.5, "m_low": 0.5, "m_high": 2.5}, "inconclusive"),
        ([*AT_MOST_2, {"metric": "x", "max": 1}], {"m": 1}, "inconclusive"),
        ([*AT_MOST_2, {"metric": "x", "max": 1}], {"m": 3}, "fail"),
        ([{"metric": "reload_check", "min": 2}], {"reload_check": "logits"}, "pass"),
        ([{"metric": "p.reload_check", "min": 2}], {"p.reload_check": "structure"}, "fail"),
        ([{"metric": "reload_check", "min": 0}], {"reload_check": "other"}, "inconclusive"),
    ],
)
def test_verdicts(gates: list[dict[str, Any]], metrics: dict[str, Any], verdict: str) -> None:
    assert evaluate(gates, metrics)[0] == verdict


def test_every_gate_has_a_check_with_its_value_and_reason() -> None:
    _, checks = evaluate([*AT_MOST_2, {"metric": "x", "min": 1.0}], {"m": 1.5})
    assert [(c.metric, c.result, c.value, c.min, c.max) for c in checks] == [
        ("m", "pass", 1.5, None, 2.0),
        ("x", "inconclusive", None, 1.0, None),
    ]
    assert checks[0].reason is None
    assert checks[1].reason


@pytest.mark.parametrize(
    ("metric", "metrics", "cause"),
    [
        ("bias_change", {"bias_change": 0.1, "templates": 1}, "come from one template"),
        ("ab.bias_change", {"ab.bias_change": 0.1, "ab.templates": 1}, "come from one template"),
        ("noise_floor", {"noise_floor": 0.1, "templates": 5, "control_pairs": 1}, "control pairs of several"),
        ("m", {"m": 1.0}, "several independent measurements"),
    ],
)
def test_a_gate_on_a_number_without_an_interval_says_why_there_is_none(
    metric: str, metrics: dict[str, Any], cause: str
) -> None:
    unknown = {f"{metric}_low": None, f"{metric}_high": None}
    verdict, (check,) = evaluate([{"metric": metric, "max": 2.0}], {**metrics, **unknown})
    assert verdict == "inconclusive"
    assert cause in str(check.reason)


def test_a_speedup_that_runs_disagree_on_passes_no_gate() -> None:
    gate = [{"metric": "speedup", "min": 1.1}]
    assert evaluate(gate, {"speedup": 1.2, "speedup_low": 0.9, "speedup_high": 1.4})[0] == "inconclusive"
    assert evaluate(gate, {"speedup": 1.2, "speedup_low": 1.15, "speedup_high": 1.4})[0] == "pass"
