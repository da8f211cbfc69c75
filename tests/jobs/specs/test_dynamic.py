"""Dynamic pruning in evaluate jobs: what is accepted, what is refused, and which metrics gates may name."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from jobs.specs import parse_request, parse_spec, spec_to_json
from jobs.specs.metrics import known_metrics
from jobs.specs.producing import missing

LOCAL = {"source": "local", "name": "tiny"}
TEXT = {"texts": ["x"]}


def dynamic(share: dict[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
    kept = {"keep_percentage": 50} if share is None else share
    return {"kind": "evaluate", "spec": {"model": LOCAL, "dynamic": kept, **spec}}


def test_it_is_the_same_after_storage() -> None:
    spec = parse_request(dynamic(timing=True)).spec
    assert parse_spec("evaluate", spec_to_json(spec)) == spec
    assert spec.dynamic.keep_percentage == 50


@pytest.mark.parametrize(
    ("body", "place", "reason"),
    [
        (dynamic(), ("spec",), "nothing to evaluate"),
        (dynamic({}, timing=True), ("spec", "dynamic", "keep_percentage"), "required"),
        (dynamic({"keep_percentage": 100}, timing=True), ("spec", "dynamic", "keep_percentage"), "less than"),
        (dynamic({"keep_percentage": 0}, timing=True), ("spec", "dynamic", "keep_percentage"), "greater"),
        (dynamic(text={**TEXT, "max_length": 31}), ("spec",), "max_length of at least 32"),
        (dynamic(timing=True, max_new_tokens=1), ("spec",), "max_new_tokens of at least 2"),
        (dynamic(prompts=["x"], max_new_tokens=1), ("spec",), "max_new_tokens of at least 2"),
    ],
)
def test_what_would_measure_nothing_is_refused(
    body: dict[str, Any], place: tuple[str, ...], reason: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        parse_request(body)
    found = caught.value.errors()[0]
    assert tuple(part for part in found["loc"] if part != "evaluate") == place
    assert reason in found["msg"]


def test_the_least_windows_and_one_token_of_text_alone_are_accepted() -> None:
    assert parse_request(dynamic(text={**TEXT, "max_length": 32}, max_new_tokens=1)).spec.dynamic


@pytest.mark.parametrize(
    ("metric", "needs"),
    [
        ("dynamic_active_parameters", {"dynamic"}),
        ("dynamic_perplexity_ratio", {"dynamic", "text"}),
        ("dynamic_tokens_per_second_ratio", {"dynamic", "timing true"}),
        ("dynamic_perplexity_baseline", {"dynamic", "text", "baseline"}),
    ],
)
def test_a_gate_on_it_needs_what_measures_it(metric: str, needs: set[str]) -> None:
    bare = parse_request({"kind": "evaluate", "spec": {"model": LOCAL, "prompts": ["x"]}}).spec
    assert set(missing("evaluate", bare, metric)) == needs
    whole = parse_request(dynamic(text=TEXT, timing=True, baseline=LOCAL)).spec
    named = {name for name in known_metrics("evaluate") if name.startswith("dynamic_")}
    assert metric in named and not any(missing("evaluate", whole, name) for name in named)
