"""What a caller can get wrong, and what the answer then says."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from api.context import Services
from api.middleware import MAX_BODY_BYTES
from jobs.database import connect
from jobs.repository import Repository
from jobs.rows import JobError, LocalModel
from tests.api.conftest import Caller, FakeWorker, prune


def assert_problem(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """Check the form of a problem document and return it."""
    assert response.status_code == status, response.text
    assert response.headers["Content-Type"] == "application/problem+json"
    document = response.json()
    assert set(document) >= {"type", "title", "status", "detail", "code", "errors", "request_id"}
    assert (document["status"], document["code"]) == (status, code)
    assert document["request_id"] == response.headers["X-Request-Id"]
    return dict(document)


@pytest.mark.parametrize(
    ("body", "place"),
    [
        ({**prune(), "colour": "red"}, ["body", "colour"]),
        (prune(spec={"pruning_percent": 20}), ["body", "spec", "pruning_percent"]),
        (prune(spec={"pruning_percentage": 100}), ["body", "spec", "pruning_percentage"]),
        (prune(spec={"pruning_percentage": -1}), ["body", "spec", "pruning_percentage"]),
        (prune(spec={"pruning_percentage": "20"}), ["body", "spec", "pruning_percentage"]),
        (prune(spec={"pruning_percentage": True}), ["body", "spec", "pruning_percentage"]),
        (prune(spec={"expansion_rate": 140}), ["body", "spec"]),
        (prune(spec={"pruning_percentage": None}), ["body", "spec"]),
        (prune(spec={"model": {"source": "local", "name": "../../etc"}}), ["body", "spec", "model", "name"]),
        (
            prune(spec={"model": {"source": "local", "name": "/etc/passwd"}}),
            ["body", "spec", "model", "name"],
        ),
        (prune(spec={"model": {"source": "local", "name": "a\u0000b"}}), ["body", "spec", "model", "name"]),
        (prune(spec={"model": {"source": "local"}}), ["body", "spec", "model", "name"]),
        (prune(spec={"model": {"source": "ftp", "name": "x"}}), ["body", "spec", "model", "source"]),
        (prune(spec={"model": {"name": "x"}}), ["body", "spec", "model", "source"]),
        (prune(spec={"neuron_selection_method": "BEST"}), ["body", "spec", "neuron_selection_method"]),
        (prune(spec={"layer_indices": [0, "1"]}), ["body", "spec", "layer_indices", 1]),
        ({"spec": {}}, ["body", "kind"]),
        ({"kind": "train", "spec": {}}, ["body", "kind"]),
        ({"kind": "prune"}, ["body", "spec"]),
        ([], ["body"]),
        (prune(labels={"k": "v" * 129}), ["body", "labels", "k"]),
        (prune(labels={f"k{i}": "v" for i in range(65)}), ["body", "labels"]),
        (prune(priority=1000), ["body", "priority"]),
        (prune(timeout_seconds=0), ["body", "timeout_seconds"]),
        (
            prune(gates=[{"metric": "seconds", "min": 1}, {"metric": "beauty", "min": 1}]),
            ["body", "gates", 1, "metric"],
        ),
        (prune(spec={"model": {"source": "step", "name": "p"}}), ["body", "spec", "model"]),
        (prune(gates=[{"metric": "perplexity_ratio"}]), ["body", "gates", 0]),
        (prune(webhook_url="http://example.org/hook"), ["body", "webhook_url"]),
        (prune(webhook_url="https://127.0.0.1/hook"), ["body", "webhook_url"]),
        (prune(webhook_url="https://[::1]/hook"), ["body", "webhook_url"]),
        (prune(webhook_url="https://224.0.0.1/hook"), ["body", "webhook_url"]),
        (prune(webhook_url="https://169.254.169.254/latest"), ["body", "webhook_url"]),
    ],
)
def test_a_faulty_field_is_named(
    caller: Caller, worker: FakeWorker, body: Any, place: list[str | int]
) -> None:
    response = caller.post("/v1/jobs", json=body)
    assert response.status_code == 422, response.text
    errors = response.json()["errors"]
    assert place in [error["loc"] for error in errors], errors
    assert all(error["pointer"].startswith(("/", "")) for error in errors)
    assert caller.get("/v1/jobs").json()["items"] == []


@pytest.mark.parametrize(
    "raw",
    [b"", b"{", b"nonsense", b'{"kind": NaN}', b'{"kind": "\\ud800"}', b"\xff\xfe", b'{"a":1}{"b":2}'],
)
def test_what_is_not_json_is_said(caller: Caller, worker: FakeWorker, raw: bytes) -> None:
    response = caller.post("/v1/jobs", content=raw, headers={"Content-Type": "application/json"})
    document = assert_problem(response, 422, "validation_failed")
    assert document["errors"][0]["type"] == "json_invalid"


def test_deep_nesting_is_refused_before_it_is_parsed(caller: Caller) -> None:
    raw = b'{"kind":' + b"[" * 200_000 + b"]" * 200_000 + b"}"
    document = assert_problem(caller.post("/v1/jobs", content=raw), 422, "validation_failed")
    assert document["errors"][0]["type"] == "json_too_deep"


@pytest.mark.parametrize("declared", [True, False])
def test_a_large_body_is_refused(caller: Caller, declared: bool) -> None:
    raw = json.dumps(prune(spec={"calibration": {"texts": ["x" * MAX_BODY_BYTES]}})).encode()
    content: Any = raw if declared else iter([raw[: len(raw) // 2], raw[len(raw) // 2 :]])
    assert_problem(caller.post("/v1/jobs", content=content), 413, "body_too_large")


def test_an_unknown_model_is_refused(caller: Caller, worker: FakeWorker) -> None:
    body = prune(spec={"model": {"source": "local", "name": "absent"}})
    document = assert_problem(caller.post("/v1/jobs", json=body), 422, "model_not_found")
    assert document["errors"][0]["loc"] == ["body", "spec", "model", "name"]


@pytest.mark.parametrize(
    "code",
    ["model_pickled", "model_remote_code", "model_config_invalid", "model_header_invalid", "model_truncated"],
)
@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/jobs:validate"])
def test_a_model_that_a_worker_cannot_use_is_refused_with_the_reason(
    caller: Caller, services: Services, code: str, path: str
) -> None:
    broken = LocalModel("tiny", None, {}, JobError(code, "the weights are unusable"))
    FakeWorker(services, models=[broken]).beat()
    document = assert_problem(caller.post(path, json=prune()), 422, code)
    assert document["detail"] == "the weights are unusable"


def test_without_a_worker_for_it_a_job_is_refused(caller: Caller, services: Services) -> None:
    FakeWorker(services).beat(queues=["gpu"])
    assert_problem(caller.post("/v1/jobs", json=prune()), 422, "device_unavailable")


def test_without_any_worker_a_job_is_refused(caller: Caller) -> None:
    assert_problem(caller.post("/v1/jobs", json=prune()), 422, "no_live_worker")


def test_hub_models_need_permission(caller: Caller, worker: FakeWorker) -> None:
    model = {"source": "hub", "id": "org/model", "revision": "a" * 40}
    assert_problem(caller.post("/v1/jobs", json=prune(spec={"model": model})), 422, "hub_not_allowed")


def test_another_tenants_checkpoint_cannot_be_used(
    caller: Caller, stranger: Caller, worker: FakeWorker
) -> None:
    job = caller.create()
    worker.run(job["id"])
    body = prune(spec={"model": {"source": "job", "job_id": job["id"]}})
    assert_problem(stranger.post("/v1/jobs", json=body), 422, "model_not_found")


@pytest.mark.parametrize(
    "path",
    [
        "/nowhere",
        "/v1",
        "/v1/",
        "/v1/jobs/",
        "/v2/jobs",
        "/static/none.js",
        "/static/../main.py",
        "/v1/keys/x/y",
    ],
)
def test_unknown_paths_are_problems_too(caller: Caller, path: str) -> None:
    assert_problem(caller.get(path), 404, "not_found")


def test_a_wrong_method_names_the_right_ones(caller: Caller) -> None:
    response = caller.put("/v1/jobs", json={})
    assert_problem(response, 405, "method_not_allowed")
    assert "GET" in response.headers["Allow"]


def test_a_crash_shows_nothing_of_the_inside(
    app: FastAPI, caller: Caller, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_args: object, **_kwargs: object) -> None:
        raise RuntimeError("secret at /srv/data/secret")

    monkeypatch.setattr(app.state.services.repository, "list_jobs", crash)
    response = caller.get("/v1/jobs")
    assert_problem(response, 500, "internal_error")
    assert "secret" not in response.text
    assert "Traceback" not in response.text


def test_a_silent_database_is_unavailable_not_a_crash(
    make_app: Callable[..., FastAPI], make_key: Callable[..., str]
) -> None:
    app = make_app()
    caller = Caller(app, make_key())
    services = app.state.services
    services.repository = Repository(connect("sqlite:////nowhere/x.db"), services.settings)
    response = caller.get("/v1/jobs")
    assert_problem(response, 503, "database_unavailable")
    assert "nowhere" not in response.text


def test_a_request_id_is_given_or_taken_over(caller: Caller) -> None:
    assert caller.get("/livez").headers["X-Request-Id"]
    assert caller.get("/livez", headers={"X-Request-Id": "build-7"}).headers["X-Request-Id"] == "build-7"
    forged = caller.get("/livez", headers={"X-Request-Id": 'x" injected'}).headers["X-Request-Id"]
    assert "injected" not in forged
