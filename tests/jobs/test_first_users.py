"""What first users stumbled over, before a job exists: each test is named after what the user did."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from pydantic import ValidationError

from jobs.admission import admit
from jobs.errors import InvalidError
from jobs.repository import Repository
from jobs.repository.warnings import of_metrics, together
from jobs.rows import Artifact, LocalModel, Worker
from jobs.specs import parse_request
from jobs.states import State
from tests.jobs.admission.test_admission import FACTS, WORKER, beat
from tests.jobs.conftest import TENANT

pytestmark = pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
LOCAL = {"source": "local", "name": "tiny"}
TEXT = {"texts": ["Some text."]}


def worker(**facts: Any) -> Worker:
    return replace(WORKER, models=[LocalModel("tiny", "r1", {**FACTS, **facts})])


def request(kind: str = "prune", gates: Any = (), **spec: Any) -> Any:
    return parse_request({"kind": kind, "spec": {"model": LOCAL, **spec}, "gates": list(gates)})


def refusal(repository: Repository, wanted: Any) -> InvalidError:
    with pytest.raises(InvalidError) as caught:
        admit(repository, TENANT, wanted)
    return caught.value


@pytest.mark.parametrize(
    ("wanted", "code", "place"),
    [
        (
            {"calibration": {**TEXT, "max_length": 4096}, "preset": "recommended"},
            "window_too_long",
            "max_length",
        ),
        ({"pruning_type": "MLP"}, "pruning_type_unfit", "pruning_type"),
        ({"pruning_type": "EXPERTS", "calibration": TEXT}, "pruning_type_unfit", "pruning_type"),
        (
            {"pruning_percentage": None, "target_parameters": 400_000},
            "target_unreachable",
            "target_parameters",
        ),
        (
            {"pruning_percentage": None, "target_parameters": 90_000},
            "target_unreachable",
            "target_parameters",
        ),
        ({"pruning_percentage": None, "target_bytes": 900_000}, "target_unreachable", "target_bytes"),
        ({"pruning_percentage": None, "expansion_rate": 500}, "target_unreachable", "expansion_rate"),
        ({"layer_indices": [1, 9]}, "layers_out_of_range", "layer_indices"),
    ],
)
def test_whoever_asks_a_model_for_what_it_cannot_give_is_told_at_once(
    repository: Repository, wanted: dict[str, Any], code: str, place: str
) -> None:
    beat(repository, worker(max_positions=2048))
    error = refusal(repository, request(**{"pruning_percentage": 20, **wanted}))
    assert (error.code, error.location[-1]) == (code, place)


MIXTURE: dict[str, Any] = {
    "model_type": "mixtral",
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "expert_parameters": 300_000,
}


@pytest.mark.parametrize(
    ("wanted", "place", "reason"),
    [
        ({"pruning_percentage": 90}, "pruning_percentage", "leaves 1 of 8 experts"),
        ({"target_parameters": 90_000}, "target_parameters", "removing experts alone leaves at least"),
    ],
)
def test_whoever_asks_for_fewer_experts_than_there_can_be_is_told_at_once(
    repository: Repository, wanted: dict[str, Any], place: str, reason: str
) -> None:
    beat(repository, worker(**MIXTURE))
    error = refusal(repository, request(pruning_type="EXPERTS", calibration=TEXT, **wanted))
    assert (error.code, error.location[-1]) == ("target_unreachable", place)
    assert reason in str(error)
    assert admit(
        repository, TENANT, request(pruning_type="EXPERTS", calibration=TEXT, pruning_percentage=75)
    ).queue


def test_whoever_leaves_the_text_to_a_model_that_writes_none_is_told(repository: Repository) -> None:
    beat(repository, worker(model_type="bert"))
    asked = {"pruning_type": "MLP", "pruning_percentage": 20}
    error = refusal(repository, request(preset="recommended", **asked))
    assert (error.code, error.location) == ("calibration_unfit", ("spec", "calibration"))
    assert "'bert' predict no next token" in error.message
    assert admit(repository, TENANT, request(preset="recommended", calibration=TEXT, **asked)).queue


def test_whoever_asks_a_model_without_a_next_token_for_dynamic_pruning_is_told(
    repository: Repository,
) -> None:
    asked = request("evaluate", timing=True, dynamic={"keep_percentage": 50})
    beat(repository, worker(model_type="bert"))
    error = refusal(repository, asked)
    assert (error.code, error.location) == ("dynamic_unfit", ("spec", "dynamic"))
    assert "'bert' predict no next token" in error.message
    beat(repository, worker(model_type="llama"))
    ours, plain = (
        admit(repository, TENANT, each).estimate for each in (asked, request("evaluate", timing=True))
    )
    assert ours and plain and ours.peak_memory_bytes > plain.peak_memory_bytes
    assert ours.seconds > plain.seconds


def test_whoever_asks_for_what_the_model_can_give_is_not_hindered(repository: Repository) -> None:
    beat(repository, worker(max_positions=2048))
    for wanted in (
        {"pruning_percentage": 20, "calibration": {**TEXT, "max_length": 2048}, "preset": "recommended"},
        {"target_parameters": 300_000},
        {"target_bytes": 500_000},
        {"expansion_rate": 300},
    ):
        assert admit(repository, TENANT, request(**wanted)).queue


def test_whoever_evaluates_on_long_windows_is_told_of_the_positions(repository: Repository) -> None:
    beat(repository, worker(max_positions=2048))
    error = refusal(repository, request("evaluate", text={**TEXT, "max_length": 4096}))
    assert (error.code, error.location) == ("window_too_long", ("spec", "text", "max_length"))
    assert "at most 2048" in error.message


def test_whoever_asks_for_figures_of_layers_that_are_not_there_is_told(repository: Repository) -> None:
    beat(repository, WORKER)
    error = refusal(repository, request("bias", layers=[0, 40], visualization_types=["heatmap"]))
    assert (error.code, error.location) == ("layers_out_of_range", ("spec", "layers"))


def test_longer_windows_are_estimated_to_take_more_memory_and_time(repository: Repository) -> None:
    beat(repository, WORKER)
    short, long = (
        admit(
            repository,
            TENANT,
            request("evaluate", text={"source": "local", "name": "wiki.txt", "max_length": n}),
        )
        for n in (512, 16_384)
    )
    assert short.estimate and long.estimate
    assert long.estimate.peak_memory_bytes > short.estimate.peak_memory_bytes + 16_384 * 4 * 1000
    assert long.estimate.seconds > short.estimate.seconds


def test_a_whole_suite_many_pairs_and_many_figures_are_estimated_longer(repository: Repository) -> None:
    crows = {"crows.csv": {"kind": "crows_pairs", "items": 1508}}
    beat_with(repository, crows)
    pairs = [[f"The white man number {n}", f"The Black man number {n}"] for n in range(100)]

    def seconds(**spec: Any) -> float:
        estimate = admit(repository, TENANT, request("bias", **spec)).estimate
        assert estimate is not None
        return estimate.seconds

    plain = seconds(prompt_pairs=pairs[:2])
    assert seconds(prompt_pairs=pairs) > plain + 20
    assert seconds(prompt_pairs=pairs[:2], visualization_types=["heatmap", "pca"], layers="all") > plain + 20
    assert seconds(suite="crows.csv") > plain + 30


def beat_with(repository: Repository, suites: dict[str, Any]) -> None:
    repository.worker_beat(
        WORKER.id,
        queues=WORKER.queues,
        devices=WORKER.devices,
        models=WORKER.models,
        files=WORKER.files,
        allow_hub=False,
        code_version="1",
        suites=suites,
    )


def test_whoever_gates_a_suite_on_what_another_suite_gives_is_told(repository: Repository) -> None:
    beat_with(repository, {"crows.csv": {"kind": "crows_pairs", "items": 1508}})
    gates = [{"metric": "seconds", "max": 900}, {"metric": "stereoset_ss", "min": 40}]
    error = refusal(repository, request("bias", gates, suite="crows.csv"))
    assert (error.code, error.location) == ("metric_not_produced", ("gates", 1, "metric"))
    right = [{"metric": "crows_pairs_score", "max": 60}]
    assert admit(repository, TENANT, request("bias", right, suite="crows.csv")).queue


def test_whoever_asks_sentences_for_what_only_prompt_pairs_answer_is_told_at_once(
    repository: Repository,
) -> None:
    beat_with(repository, {"crows.csv": {"kind": "crows_pairs", "items": 1508}})
    controls = [["The small dog", "The little dog"]]
    error = refusal(repository, request("bias", suite="crows.csv", control_pairs=controls, layers="all"))
    assert (error.code, error.location) == ("suite_unfit", ("spec", "control_pairs"))
    assert "control_pairs and layers" in error.message and "CrowS-Pairs" in error.message
    beat_with(repository, {"crows.csv": {"kind": "prompt_pairs", "items": 12}})
    assert admit(repository, TENANT, request("bias", suite="crows.csv", control_pairs=controls)).queue


PIPELINE = {
    "steps": [
        {"name": "cut", "kind": "prune", "spec": {"model": LOCAL, "pruning_percentage": 20}},
        {"name": "before", "kind": "evaluate", "spec": {"model": LOCAL, "text": TEXT}},
        {
            "name": "after",
            "kind": "evaluate",
            "spec": {"model": {"source": "step", "name": "cut"}, "text": TEXT},
        },
    ]
}


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        ({"kind": "bias", "spec": {"model": LOCAL}, "metric": "bias_change"}, "baseline"),
        ({"kind": "bias", "spec": {"model": LOCAL}, "metric": "stereoset_ss"}, "suite"),
        ({"kind": "bias", "spec": {"model": LOCAL}, "metric": "neurons_significant"}, "neuron_ranking"),
        ({"kind": "bias", "spec": {"model": LOCAL}, "metric": "largest_effect"}, "patching"),
        ({"kind": "bias", "spec": {"model": LOCAL}, "metric": "generation_overlap"}, "generation"),
        (
            {"kind": "evaluate", "spec": {"model": LOCAL, "text": TEXT}, "metric": "speedup"},
            "timing true and baseline",
        ),
        (
            {"kind": "pipeline", "spec": PIPELINE, "metric": "cut.perplexity_ratio"},
            "step 'cut' needs evaluation",
        ),
        (
            {"kind": "pipeline", "spec": PIPELINE, "metric": "perplexity"},
            "before.perplexity or after.perplexity",
        ),
    ],
)
def test_whoever_gates_on_what_the_spec_does_not_produce_is_told_what_would(
    repository: Repository, body: dict[str, Any], wanted: str
) -> None:
    gate = {"metric": body.pop("metric"), "max": 1}
    with pytest.raises(ValidationError, match=wanted):
        parse_request({**body, "gates": [gate]})


class TestStepAsModel:
    def finished(self, repository: Repository, succeeded: bool = True) -> str:
        job = repository.create_job(
            TENANT, parse_request({"kind": "pipeline", "spec": PIPELINE}), queue="cpu"
        )
        claim = repository.claim(job.id, "w1")
        assert claim is not None
        if succeeded:
            files = [Artifact("cut.model.safetensors", "", 700_000, "0" * 64, f"{job.id}/1", 1)]
            metrics = {"cut.pruned_parameters": 350_000}
            state = repository.mark_succeeded(
                job.id, 1, artifacts=files, archive=None, metrics=metrics, publish=lambda: None
            )
            assert state is State.SUCCEEDED
        return job.id

    def test_whoever_names_a_pipelines_step_gets_its_model(self, repository: Repository) -> None:
        beat(repository, WORKER)
        model = {"source": "job", "job_id": self.finished(repository), "step": "cut"}
        admission = admit(repository, TENANT, request("evaluate", model=model, text=TEXT))
        assert admission.estimate is not None and admission.reuse_key is not None
        error = refusal(repository, request(model=model, target_parameters=360_000))
        assert "350,000 parameters" in error.message

    def test_whoever_names_the_pipeline_alone_is_told_which_steps_it_has(
        self, repository: Repository
    ) -> None:
        beat(repository, WORKER)
        job_id = self.finished(repository)
        for named in ({}, {"step": "after"}):
            model = {"source": "job", "job_id": job_id, **named}
            error = refusal(repository, request("analyze", model=model))
            assert error.code == "model_not_found" and '"step": "cut"' in error.message


def test_warnings_of_every_form_become_one_list_that_names_the_step(repository: Repository) -> None:
    coded = {"code": "windows_few", "message": "only 3 windows"}
    fair = {"fairness": {"warnings": ["few templates"]}}
    assert of_metrics({"warnings": [coded, "a text"], **fair}) == [
        coded,
        {"code": "note", "message": "a text"},
        {"code": "note", "message": "few templates"},
    ]
    merged = {"cut.warnings": ["a text"], "cut.seconds": 1, "warnings": ["a text"], "b.seconds": 2}
    assert of_metrics(merged) == [{"code": "note", "message": "step cut: a text"}]
    assert together([coded], [coded]) == [coded]
