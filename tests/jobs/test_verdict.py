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
