"""Suites by name in jobs: what a spec may ask for, and the gates on what it then reports."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from jobs.admission.reuse import _names_a_file
from jobs.admission.workload import bias_work
from jobs.specs import parse_request, parse_spec, spec_to_json
from optipfair_engine.options.suites import entry_of, how_to_get

LOCAL = {"source": "local", "name": "tiny"}


def bias(*metrics: str, **spec: Any) -> dict[str, Any]:
    gates = [{"metric": metric, "max": 60} for metric in metrics]
    return {"kind": "bias", "spec": {"model": LOCAL, **spec}, "gates": gates}


def refusal(body: dict[str, Any]) -> str:
    with pytest.raises(ValidationError) as caught:
        parse_request(body)
    return str(caught.value)


def test_gates_may_name_a_suite_a_category_and_a_metric() -> None:
    named = ("crows_pairs.score", "crows_pairs.race.score", "stereoset.gender.icat", "seconds")
    body = bias(*named, suites=["crows_pairs", "stereoset"])
    assert parse_request(body).spec.suites == ["crows_pairs", "stereoset"]
    parse_request(bias("optipfair.age.effect_over_noise", "mean_difference", suites=["optipfair"]))
    parse_request(bias("optipfair.age.bias_change", baseline=LOCAL))  # no prompts: it is the default
    changes = ("stereoset.preference_change", "stereoset.race.preference_change", "stereoset.ss_baseline")
    parse_request(bias(*changes, suites=["stereoset"], baseline=LOCAL))


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (bias("crows_pairs.score"), 'needs "crows_pairs" in suites'),
        (bias("stereoset.ss", suites=["crows_pairs"]), 'needs "stereoset" in suites'),
        (bias("stereoset.preference_change", suites=["stereoset"]), "needs baseline"),
        (bias("crows_pairs.rice.score", suites=["crows_pairs"]), "it does report crows_pairs.race.score"),
        (bias("mean_difference", suites=["crows_pairs"]), "needs prompt pairs"),
        (bias(suites=[]), "at least 1"),
        (bias(suites=["crows_pairs", "crows_pairs"]), "crows_pairs twice"),
        (bias(suites=["honesty"]), "'crows_pairs'"),
        (bias(suites=["stereoset"], suite="x.csv"), "suite, suites given"),
        (bias(suites=["stereoset"], layers="all"), "layers: for prompt pairs only"),
        (bias(suites=["bbq"], visualization_types=["pca"]), "visualization_types: for prompt pairs only"),
    ],
)
def test_what_a_job_would_not_report_is_refused(body: dict[str, Any], told: str) -> None:
    assert told in refusal(body)


def test_a_pipelines_gate_may_name_the_step_or_leave_it_out() -> None:
    def step(name: str) -> dict[str, Any]:
        return {"name": name, "kind": "bias", "spec": {"model": LOCAL, "suites": ["stereoset"]}}

    def pipeline(metric: str, *names: str) -> dict[str, Any]:
        gates = [{"metric": metric, "max": 60}]
        return {"kind": "pipeline", "spec": {"steps": [step(name) for name in names]}, "gates": gates}

    for metric in ("a.stereoset.ss", "stereoset.ss", "a.stereoset.race.ss"):
        parse_request(pipeline(metric, "a"))
    assert "name one of them, a.stereoset.ss or b.stereoset.ss" in refusal(pipeline("stereoset.ss", "a", "b"))
    parse_request(pipeline("stereoset.stereoset.ss", "stereoset"))


def test_named_suites_are_estimated_and_their_results_not_shared() -> None:
    one = parse_spec("bias", {"model": LOCAL, "suites": ["crows_pairs"]})
    two = parse_spec("bias", {"model": LOCAL, "suites": ["crows_pairs", "stereoset"]})
    assert bias_work(one, {}, 4).items == 1508
    assert bias_work(two, {}, 4).seconds(10**8) > bias_work(one, {}, 4).seconds(10**8) > 60
    own = parse_spec("bias", {"model": LOCAL, "suites": ["optipfair"]})
    assert (bias_work(own, {}, 4).pairs, bias_work(own, {}, 4).figures) == (480, 1)
    assert _names_a_file(spec_to_json(two)) and not _names_a_file(spec_to_json(own))
    saying = {"max_new_tokens": 200, "samples": 8}
    long = parse_spec("bias", {"model": LOCAL, "suites": ["optipfair"], "generation": saying})
    assert bias_work(long, {}, 4).seconds(10**8) > 10 * bias_work(own, {}, 4).seconds(10**8)


def test_what_is_missing_is_told_with_the_folder_that_is_meant() -> None:
    told = how_to_get(entry_of("crows_pairs"), "data/suites")
    assert "into data/suites/crows_pairs" in told
    assert told.endswith("optipfair suites fetch crows_pairs --suites-folder data/suites")
    assert how_to_get(entry_of("crows_pairs"), "suites").endswith("fetch crows_pairs")
