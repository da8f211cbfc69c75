"""Test hooks do nothing in a worker that was not started for tests."""

from __future__ import annotations

import pytest

from worker import test_hooks as hooks

LABELS = {"test.engine": "die", "team": "nlp"}


@pytest.mark.parametrize("environ", [{}, {"OPTIPFAIR_TEST_HOOKS": "0"}, {"OPTIPFAIR_TEST_HOOKS": "true"}])
def test_labels_are_only_labels_without_the_variable(environ: dict[str, str]) -> None:
    assert hooks.of_labels(LABELS, 1, environ) == {}


def test_labels_become_hooks_with_the_variable() -> None:
    assert hooks.of_labels(LABELS, 1, {"OPTIPFAIR_TEST_HOOKS": "1"}) == {"engine": "die"}


def test_what_is_for_the_first_attempt_is_over_in_the_second() -> None:
    labels = {"test.engine": "die-once", "test.complete": "stale:5"}
    environ = {"OPTIPFAIR_TEST_HOOKS": "1"}
    assert hooks.of_labels(labels, 1, environ) == {"engine": "die-once", "complete": "stale:5"}
    assert hooks.of_labels(labels, 2, environ) == {}
    assert hooks.of_labels({"test.engine": "hold-once:5"}, 2, environ) == {}


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("hold:2.5", ("hold", 2.5)),
        ("hold-once:2", ("hold-once", 2.0)),
        ("stale:3", ("stale", 3.0)),
        ("reject:0", ("reject", 0.0)),
        ("hold:", ("", 0.0)),
        ("hold:-1", ("", 0.0)),
        ("die", ("", 0.0)),
    ],
)
def test_hold(text: str, meaning: tuple[str, float]) -> None:
    assert hooks.parse_hold(text) == meaning
