"""Numbers in a report, and the sentence that it begins with."""

from __future__ import annotations

import re

import pytest

from optipfair_engine.bias.results.changes import Change, Compared, ProfileComparison
from optipfair_engine.bias.results.differences import ActivationSummary, AlignmentSummary, Difference, Noise
from optipfair_engine.bias.results.intervals import Interval
from optipfair_engine.bias.results.result import BiasResult
from optipfair_engine.bias.wording import between, conclusion, p_value, three_digits


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (5.551e-17, "0"),
        (-5.551e-17, "0"),
        (0.0, "0"),
        (0.000023456, "0.0000235"),
        (0.00012345, "0.000123"),
        (0.12, "0.120"),
        (-1.2345, "−1.23"),
        (99.96, "100"),
        (999.7, "1,000"),
        (12345.6, "12,346"),
        (None, "–"),
    ],
)
def test_numbers_have_three_digits_and_no_exponent(value, text) -> None:
    assert three_digits(value) == text


def test_small_p_values_and_intervals() -> None:
    assert (p_value(1e-9), p_value(0.04321)) == ("<0.001", "0.0432")
    assert between(Interval(0.5, 0.25, 0.75)) == "0.500 (0.250 … 0.750)"
    assert between(Interval(0.5, None, None), scale=100) == "50.0"


def measured(overall: Difference, comparison: ProfileComparison | None = None) -> BiasResult:
    summary = ActivationSummary(8, 8, 4, overall, {}, {}, AlignmentSummary(1.0, 1.0, 0), ())
    baseline = "before" if comparison is not None else None
    return BiasResult("tiny", baseline, activations=summary, comparison=comparison)


def noise(low: float | None, high: float | None) -> Noise:
    return Noise(Interval(0.1, 0.05, 0.2), Interval(2.0, low, high), None)


@pytest.mark.parametrize(
    ("overall", "says"),
    [
        (
            Difference(Interval(0.2, 0.1, 0.3), None, noise(1.5, 2.5)),
            "more than to a rewording: .* 2.00",
        ),
        (Difference(Interval(0.2, 0.1, 0.3), None, noise(0.5, 2.5)), "No reaction of tiny .* is shown"),
        (Difference(Interval(0.2, 0.1, 0.3), None, noise(None, None)), "stays open"),
        (Difference(Interval(0.2, 0.1, 0.3), None), "without control pairs"),
        (Difference(None, None), "Nothing can be said of tiny"),
    ],
)
def test_the_conclusion_says_what_the_interval_allows(overall, says) -> None:
    assert re.search(says, conclusion(measured(overall)))


@pytest.mark.parametrize(
    ("outcome", "says"),
    [
        ("better", "tiny is less biased than before by this measure"),
        ("worse", "tiny is more biased"),
        ("inconclusive", "only a change beyond ±5 % counts"),
    ],
)
def test_a_comparison_is_the_conclusion(outcome, says) -> None:
    interval = Interval(-0.2, -0.3, -0.1)
    change = Change(0.2, 0.16, interval, interval, outcome)
    comparison = ProfileComparison(0.05, Compared((), (), ()), change, {}, (), ())
    found = conclusion(measured(Difference(interval, None), comparison))
    assert says in found
    assert "−20.0 % (95 % interval −30.0 … −10.0 %)" in found


def test_a_result_without_a_comparable_position_has_no_metric_for_a_gate() -> None:
    flat = measured(Difference(None, None)).flat()
    assert flat == {"pairs": 8, "templates": 8, "control_pairs": 4, "share_aligned": 1.0}
