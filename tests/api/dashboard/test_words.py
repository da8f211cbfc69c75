"""The words in which the dashboard tells numbers, sizes and times."""

from __future__ import annotations

import pytest

from api.dashboard import findings, metrics, words


class TestWords:
    @pytest.mark.parametrize(
        ("value", "text"),
        [
            (None, "–"),
            (True, "yes"),
            (1234567, "1,234,567"),
            (1.23456, "1.235"),
            (float("inf"), "inf"),
            ("x", "x"),
        ],
    )
    def test_numbers(self, value: object, text: str) -> None:
        assert words.number(value) == text

    @pytest.mark.parametrize(
        ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (2**30, "1.0 GiB")]
    )
    def test_sizes(self, count: int, text: str) -> None:
        assert words.size(count) == text

    @pytest.mark.parametrize(
        ("seconds", "text"),
        [(0.5, "0.5 s"), (42, "42 s"), (61, "1 min 1 s"), (3700, "1 h 1 min"), (2e5, "2 days")],
    )
    def test_spans(self, seconds: float, text: str) -> None:
        assert words.span(seconds) == text

    def test_a_pipelines_metric_is_shown_once(self) -> None:
        found = {"cut.perplexity_dense": 3.0, "perplexity_dense": 3.0, "cut.perplexity_pruned": 4.0,
                   "perplexity_pruned": 4.0, "seconds": 1, "warnings": []}  # fmt: skip
        alone = metrics.without_copies(found)
        assert list(alone) == ["cut.perplexity_dense", "cut.perplexity_pruned", "seconds", "warnings"]
        assert len(list(findings.before_and_after(alone))) == 1

    def test_pairs_are_found_in_steps_of_a_pipeline_too(self) -> None:
        found = {
            "cut.original_parameters": 10,
            "cut.pruned_parameters": 8,
            "perplexity_dense": float("nan"),
        }
        assert [chart.title for chart in findings.before_and_after(found)] == [
            "cut: Parameters: 20.0 % fewer"
        ]
