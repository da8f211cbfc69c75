"""What first users stumbled over, by HTTP: each test is named after what the user did."""

from __future__ import annotations

import io
import tarfile
from typing import Any

import pytest
from fastapi import FastAPI

from api.context import Services
from jobs.rows import LocalModel
from service.doctor import check_room
from tests.api.conftest import FACTS, FILES, METRICS, MODEL, Caller, FakeWorker, prune

TEXT = {"texts": ["Some text to measure on."]}
WARNED = {**METRICS, "warnings": [{"code": "static_selection", "message": "chosen by weights *alone*"}]}


def refused(caller: Caller, body: Any) -> dict[str, Any]:
    response = caller.post("/v1/jobs", json=body)
    assert response.status_code == 422, response.text
    return dict(response.json())


class TestWarnings:
    def test_whoever_reads_the_job_or_its_verdict_sees_them(self, caller: Caller, worker: FakeWorker) -> None:
        job = caller.create(gates=[{"metric": "perplexity_ratio", "max": 1.3}])
        assert job["warnings"] == []
        worker.run(job["id"], metrics=WARNED)
        place = f"/v1/jobs/{job['id']}"
        assert caller.get(place).json()["warnings"] == WARNED["warnings"]
        markdown = caller.get(f"{place}/verdict", headers={"Accept": "text/markdown"}).text
        assert "- chosen by weights \\*alone\\*" in markdown
        junit = caller.get(f"{place}/verdict", headers={"Accept": "application/xml"}).text
        assert "static_selection: chosen by weights *alone*" in junit

    def test_whoever_opens_the_page_sees_them(
        self, browser: Caller, caller: Caller, worker: FakeWorker
    ) -> None:
        job = caller.create()
        worker.run(job["id"], metrics=WARNED)
        assert "chosen by weights *alone*" in browser.get(f"/jobs/{job['id']}").text

    def test_a_time_limit_below_the_estimate_is_said_before_it_strikes(
        self, caller: Caller, worker: FakeWorker
    ) -> None:
        body = prune(timeout_seconds=1)
        for path in ("/v1/jobs", "/v1/jobs:validate"):
            (warning,) = caller.post(path, json=body).json()["warnings"]
            assert warning["code"] == "timeout_short"


def test_whoever_asks_for_recommended_sees_what_ran_beside_what_was_sent(
    caller: Caller, worker: FakeWorker
) -> None:
    job = caller.create(spec={"preset": "recommended", "calibration": TEXT})
    assert (job["spec"]["neuron_selection_method"], job["spec"]["compensation"]) == ("MAW", "none")
    ran = job["resolved"]
    assert (ran["neuron_selection_method"], ran["compensation"]) == ("OBS", "least_squares")
    assert caller.get(f"/v1/jobs/{job['id']}").json()["resolved"] == ran
    plain = caller.create()
    assert plain["resolved"] == plain["spec"]


def test_whoever_unpacks_a_pipelines_tar_has_a_folder_a_step(caller: Caller, worker: FakeWorker) -> None:
    spec = {"model": MODEL, "pruning_percentage": 20}
    body = {"kind": "pipeline", "spec": {"steps": [{"name": "cut", "kind": "prune", "spec": spec}]}}
    job = caller.post("/v1/jobs", json=body).json()
    files = {"metrics.json": b"{}", "cut.config.json": b"{}", "cut.model.safetensors": b"weights"}
    worker.run(job["id"], files=files)
    link = caller.post(f"/v1/jobs/{job['id']}/artifacts/*/links").json()["url"]
    with tarfile.open(fileobj=io.BytesIO(caller.get(link).content)) as tar:
        names = [name.removeprefix(job["id"]) for name in tar.getnames()]
        assert names == ["", "/cut", "/cut/config.json", "/cut/model.safetensors", "/metrics.json"]
        weights = tar.extractfile(f"{job['id']}/cut/model.safetensors")
        assert weights is not None and weights.read() == b"weights"
    single = caller.post(f"/v1/jobs/{job['id']}/artifacts/cut.config.json/links").json()["url"]
    assert caller.get(single).content == b"{}"


@pytest.mark.parametrize(
    ("windows", "texts", "told"),
    [((512, 512), TEXT["texts"], False), ((512, 128), TEXT["texts"], True), ((512, 512), ["Other."], True)],
    ids=["the same", "shorter windows", "another text"],
)
def test_whoever_compares_perplexities_of_other_texts_or_windows_is_told_and_sees_no_change(
    browser: Caller, caller: Caller, worker: FakeWorker, windows: Any, texts: list[str], told: bool
) -> None:
    jobs = []
    for number, (length, text) in enumerate(zip(windows, (TEXT["texts"], texts), strict=True), 1):
        evaluation = {"texts": text, "max_length": length}
        jobs.append(caller.create(spec={"evaluation": evaluation, "pruning_percentage": 10 * number}))
        metrics = {**METRICS, "perplexity_dense": 20.0 * number, "evaluation_max_length": length}
        worker.run(jobs[-1]["id"], metrics=metrics)
    page = browser.get(f"/ui/compare?id={jobs[0]['id']}&id={jobs[1]['id']}").text
    assert ("it can't be compared" in page) is told
    assert ("+100.0%" in page) is not told


def test_whoever_reads_an_ended_job_sees_until_when_its_files_are_kept(
    caller: Caller, worker: FakeWorker
) -> None:
    job = caller.create()
    assert job["artifacts_expire_at"] is None
    worker.run(job["id"])
    ended = caller.get(f"/v1/jobs/{job['id']}").json()
    assert ended["artifacts_expire_at"] > ended["finished_at"]


def test_whoever_asks_the_doctor_sees_whose_files_take_room(
    services: Services, caller: Caller, worker: FakeWorker
) -> None:
    worker.run(caller.create()["id"])
    found = check_room(services.settings)
    assert found.well and "files of acme" in found.text


class TestSentences:
    @pytest.mark.parametrize(
        ("body", "told"),
        [
            (prune(spec={"pruning_percent": 20}), "did you mean 'pruning_percentage'?"),
            ({**prune(), "lables": {}}, "did you mean 'labels'?"),
            ({**prune(), "pruning_percentage": 20}, "it belongs into spec"),
            (prune(spec={"calibration": {**TEXT, "max_lenght": 9}}), "did you mean 'max_length'?"),
            (prune(spec={"model": {**MODEL, "nme": "x"}}), "did you mean 'name'?"),
            (prune(gates=[{"metrik": "seconds", "max": 1}]), "did you mean 'metric'?"),
            ({"kind": "bias", "spec": {"model": MODEL, "prompt_pairs": []}}, "give at least one pair"),
            (prune(spec={"calibration": {"texts": []}}), "give at least one text"),
            (prune(spec={"pruning_percentage": "20"}), 'give a number (20, not "20")'),
            (prune(spec={"pruning_percentage": 100}), "give a number below 100"),
            (prune(spec={"model": {"source": "local"}}), "name is missing"),
            ({"kind": "train", "spec": {}}, "there is no 'train': give one of 'analyze'"),
            (prune(spec={"neuron_selection_method": "BEST"}), "give one of 'MAW', "),
        ],
    )
    def test_whoever_mistypes_is_told_what_would_be_right(
        self, caller: Caller, worker: FakeWorker, body: Any, told: str
    ) -> None:
        document = refused(caller, body)
        assert any(told in error["detail"] for error in document["errors"]), document["errors"]

    def test_whoever_names_an_unknown_model_is_told_which_there_are(
        self, caller: Caller, worker: FakeWorker
    ) -> None:
        detail = refused(caller, prune(spec={"model": {"source": "local", "name": "tinny"}}))["detail"]
        assert "did you mean 'tiny'?" in detail and "seen within a few seconds" in detail

    def test_whoever_names_an_unknown_file_is_told_which_there_are(
        self, caller: Caller, worker: FakeWorker
    ) -> None:
        text = {"source": "local", "name": "wiki.txt"}
        assert "there are texts.txt" in refused(caller, prune(spec={"evaluation": text}))["detail"]
        bias = {"kind": "bias", "spec": {"model": MODEL, "suite": "crows.csv"}}
        assert "there are pairs.json" in refused(caller, bias)["detail"]

    def test_whoever_names_the_hub_hears_that_it_is_not_allowed_before_its_revision_is_asked_for(
        self, caller: Caller, worker: FakeWorker
    ) -> None:
        body = prune(spec={"model": {"source": "hub", "id": "org/model"}})
        document = refused(caller, body)
        assert document["code"] == "hub_not_allowed"
        assert document["errors"][0]["loc"] == ["body", "spec", "model"]
        worker.beat(allow_hub=True)
        assert refused(caller, body)["errors"][0]["detail"] == "revision is missing"


def test_whoever_asks_what_files_there_are_gets_lists(caller: Caller, worker: FakeWorker) -> None:
    worker.beat(suites={"pairs.json": {"kind": "prompt_pairs", "items": 12}})
    (text,) = caller.get("/v1/calibrations").json()["items"]
    assert (text["source"], text["name"], text["queues"]) == ("local", "texts.txt", ["cpu", "short"])
    listed = caller.get("/v1/suites").json()["items"]
    (suite,) = [item for item in listed if item["source"] == "local"]
    assert (suite["name"], suite["kind"], suite["items"]) == ("pairs.json", "prompt_pairs", 12)


def test_the_suites_of_the_catalogue_are_listed_and_one_whose_data_are_missing_is_refused(
    caller: Caller, worker: FakeWorker
) -> None:
    body = {"kind": "bias", "spec": {"model": MODEL, "suites": ["crows_pairs"]}}
    document = refused(caller, body)
    assert document["code"] == "suite_not_found"
    assert document["errors"][0]["loc"] == ["body", "spec", "suites", 0]
    assert "put crows_pairs_anonymized.csv" in document["detail"]
    worker.beat(files={"calibration": [], "suites": [], "catalogue": ["crows_pairs"]})
    states = {
        item["name"]: (item["state"], item["queues"]) for item in caller.get("/v1/suites").json()["items"]
    }
    assert states["crows_pairs"] == ("here", ["cpu", "short"])
    assert states["stereoset"] == ("missing", [])
    assert caller.post("/v1/jobs", json=body).status_code == 202


class TestImpossible:
    def test_a_gate_on_perplexity_without_a_text(self, caller: Caller, worker: FakeWorker) -> None:
        gates = [{"metric": "perplexity_ratio", "max": 1.3}]
        document = refused(caller, {**prune(), "gates": gates})
        assert "the spec needs evaluation for it" in document["detail"]
        assert document["errors"][0]["loc"] == ["body", "gates", 0, "metric"]

    def test_windows_longer_than_the_models_positions(self, caller: Caller, worker: FakeWorker) -> None:
        worker.models = [LocalModel("tiny", "r" * 64, {**FACTS, "max_positions": 8192})]
        worker.beat()
        long = {**TEXT, "max_length": 20_000}
        document = refused(caller, prune(spec={"calibration": long, "preset": "recommended"}))
        assert document["code"] == "window_too_long" and "8,192 positions" in document["detail"]
        assert document["errors"][0]["loc"] == ["body", "spec", "calibration", "max_length"]


def test_a_tenant_whose_files_take_all_that_they_may_is_told_to_delete_some(
    make_app: Any, services: Services, caller: Caller, worker: FakeWorker
) -> None:
    first = caller.create()
    worker.run(first["id"])
    kept = services.repository.kept_bytes()["acme"]
    assert kept == sum(map(len, FILES.values()))
    app: FastAPI = make_app(max_artifact_bytes_per_tenant=kept + 1000)
    limited = Caller(app, caller.key)
    answer = limited.post("/v1/jobs", json=prune())
    assert answer.status_code == 429 and answer.json()["code"] == "artifact_quota_exceeded"
    assert "delete jobs" in answer.json()["detail"] and answer.headers["Retry-After"]
    assert answer.headers["RateLimit-Policy"] == f'"artifact-bytes";q={kept + 1000}'
    app.state.services.engine.dispose()
    roomy = Caller(make_app(max_artifact_bytes_per_tenant=kept + 1_000_000), caller.key)
    assert roomy.post("/v1/jobs", json=prune()).status_code == 202
