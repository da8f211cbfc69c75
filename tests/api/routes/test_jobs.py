"""Creating, listing, reading and ending jobs over HTTP."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from fastapi import FastAPI

from api.context import Services
from tests.api.conftest import METRICS, Caller, FakeWorker, prune


def test_a_job_is_accepted_with_its_place(caller: Caller, worker: FakeWorker) -> None:
    response = caller.post("/v1/jobs", json=prune(labels={"team": "nlp"}))
    job = response.json()
    assert response.status_code == 202, response.text
    assert response.headers["Location"] == f"/v1/jobs/{job['id']}"
    assert int(response.headers["Retry-After"]) > 0
    assert (job["state"], job["terminal"], job["attempt"], job["labels"]) == (
        "queued",
        False,
        0,
        {"team": "nlp"},
    )
    assert job["max_attempts"] == 3
    assert job["progress"] == {"fraction": 0.0, "stage": None, "message": None, "eta_seconds": None}
    assert (job["error"], job["started_at"], job["finished_at"]) == (None, None, None)
    assert job["created_at"].endswith("Z")
    assert caller.get(job["links"]["self"]).json()["id"] == job["id"]


def test_the_stored_spec_spells_out_defaults(caller: Caller, worker: FakeWorker) -> None:
    assert caller.create()["spec"]["neuron_selection_method"] == "MAW"


def test_creation_leaves_a_message_with_the_trace_in_the_outbox(
    caller: Caller, worker: FakeWorker, services: Services
) -> None:
    job = caller.create()
    entries = services.repository.take_outbox()
    assert [(entry.job_id, entry.queue) for entry in entries] == [(job["id"], "short")]


def test_validate_estimates_and_creates_nothing(caller: Caller, worker: FakeWorker) -> None:
    response = caller.post("/v1/jobs:validate", json=prune())
    assert response.status_code == 200, response.text
    estimate = response.json()
    assert set(estimate) == {
        *("peak_memory_bytes", "output_bytes", "seconds", "queue", "execution", "reason", "warnings")
    }
    assert 0 < estimate["output_bytes"] < 400_000
    assert estimate["queue"] == "short"
    assert caller.get("/v1/jobs").json()["items"] == []


class TestIdempotency:
    @pytest.mark.parametrize("again", ["abc-1", '"abc-1"'])
    def test_the_first_answer_comes_again(self, caller: Caller, worker: FakeWorker, again: str) -> None:
        first = caller.post("/v1/jobs", json=prune(), headers={"Idempotency-Key": "abc-1"})
        second = caller.post("/v1/jobs", json=prune(), headers={"Idempotency-Key": again})
        assert second.status_code == 202
        assert second.content == first.content
        assert second.headers["Location"] == first.headers["Location"]
        assert len(caller.get("/v1/jobs").json()["items"]) == 1

    def test_the_order_of_fields_does_not_matter(self, caller: Caller, worker: FakeWorker) -> None:
        body = prune(labels={"a": "1", "b": "2"})
        turned = dict(reversed([*{**body, "labels": {"b": "2", "a": "1"}}.items()]))
        headers = {"Idempotency-Key": "k"}
        assert caller.post("/v1/jobs", json=body, headers=headers).content == (
            caller.post("/v1/jobs", json=turned, headers=headers).content
        )

    def test_another_body_is_refused(self, caller: Caller, worker: FakeWorker) -> None:
        headers = {"Idempotency-Key": "k"}
        caller.post("/v1/jobs", json=prune(), headers=headers)
        other = caller.post("/v1/jobs", json=prune(priority=1), headers=headers)
        assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")

    def test_a_refused_request_frees_its_key(self, caller: Caller, worker: FakeWorker) -> None:
        headers = {"Idempotency-Key": "k"}
        missing = prune(spec={"model": {"source": "local", "name": "absent"}})
        assert caller.post("/v1/jobs", json=missing, headers=headers).status_code == 422
        assert caller.post("/v1/jobs", json=prune(), headers=headers).status_code == 202

    def test_while_the_first_is_answered_the_second_conflicts(
        self, caller: Caller, worker: FakeWorker, services: Services
    ) -> None:
        services.repository.begin_idempotent("acme", "k", prune())
        second = caller.post("/v1/jobs", json=prune(), headers={"Idempotency-Key": "k"})
        assert (second.status_code, second.json()["code"]) == (409, "idempotency_in_flight")

    def test_many_at_once_make_one_job(self, caller: Caller, worker: FakeWorker) -> None:
        def post(_number: int) -> int:
            return caller.post("/v1/jobs", json=prune(), headers={"Idempotency-Key": "k"}).status_code

        with ThreadPoolExecutor(8) as pool:
            statuses = set(pool.map(post, range(8)))
        assert statuses <= {202, 409}
        assert len(caller.get("/v1/jobs").json()["items"]) == 1

    def test_keys_of_tenants_do_not_meet(self, caller: Caller, stranger: Caller, worker: FakeWorker) -> None:
        headers = {"Idempotency-Key": "k"}
        mine = caller.post("/v1/jobs", json=prune(), headers=headers).json()
        theirs = stranger.post("/v1/jobs", json=prune(priority=1), headers=headers)
        assert theirs.status_code == 202
        assert theirs.json()["id"] != mine["id"]

    @pytest.mark.parametrize("key", ["", '""', "a b", "x" * 256, "\x01"])
    def test_unusable_keys_are_refused(self, caller: Caller, worker: FakeWorker, key: str) -> None:
        response = caller.post("/v1/jobs", json=prune(), headers={"Idempotency-Key": key})
        assert response.status_code == 422
        assert response.json()["errors"][0]["loc"] == ["header", "Idempotency-Key"]


class TestListing:
    def test_pages_follow_each_other_newest_first(self, caller: Caller, worker: FakeWorker) -> None:
        made = [caller.create()["id"] for _ in range(5)]
        seen: list[str] = []
        url = "/v1/jobs?limit=2"
        while url:
            response = caller.get(url)
            page = response.json()
            seen += [job["id"] for job in page["items"]]
            assert ("next" in response.links) == (page["next_cursor"] is not None)
            url = response.links["next"]["url"] if page["next_cursor"] else ""
        assert seen == made[::-1]

    def test_filters_narrow_and_travel_with_the_link(self, caller: Caller, worker: FakeWorker) -> None:
        for number in range(3):
            caller.create(labels={"team": "nlp", "n": str(number)})
        caller.create(labels={"team": "vision"})
        response = caller.get("/v1/jobs", params={"label.team": "nlp", "state": "queued", "limit": 2})
        assert [job["labels"]["n"] for job in response.json()["items"]] == ["2", "1"]
        following = caller.get(response.links["next"]["url"])
        assert [job["labels"]["n"] for job in following.json()["items"]] == ["0"]
        assert caller.get("/v1/jobs?state=succeeded").json()["items"] == []
        assert caller.get("/v1/jobs?kind=bias").json()["items"] == []
        assert len(caller.get("/v1/jobs?kind=prune&label.team=nlp&label.n=1").json()["items"]) == 1

    def test_created_after_is_exclusive(self, caller: Caller, worker: FakeWorker) -> None:
        first = caller.create()
        time.sleep(0.005)
        second = caller.create()
        found = caller.get("/v1/jobs", params={"created_after": first["created_at"]}).json()["items"]
        assert [job["id"] for job in found] == [second["id"]]

    @pytest.mark.parametrize(
        ("query", "place"),
        [
            ("limit=0", "limit"),
            ("limit=101", "limit"),
            ("state=done", "state"),
            ("kind=train", "kind"),
            ("cursor=%00", "cursor"),
            ("cursor=abc", "cursor"),
            ("created_after=yesterday", "created_after"),
            ("created_after=2026-01-01T00:00:00", "created_after"),
            ("sate=failed", "sate"),
        ],
    )
    def test_what_cannot_be_filtered_is_said(self, caller: Caller, query: str, place: str) -> None:
        response = caller.get(f"/v1/jobs?{query}")
        assert response.status_code == 422, response.text
        assert response.json()["errors"][0]["loc"] == ["query", place]


class TestGetting:
    def test_an_etag_saves_the_body_until_something_changes(self, caller: Caller, worker: FakeWorker) -> None:
        job = caller.create()
        url = f"/v1/jobs/{job['id']}"
        first = caller.get(url)
        tag = first.headers["ETag"]
        same = caller.get(url, headers={"If-None-Match": tag})
        assert (same.status_code, same.content, same.headers["ETag"]) == (304, b"", tag)
        attempt = worker.claim(job["id"])
        running = caller.get(url, headers={"If-None-Match": tag})
        assert (running.status_code, running.json()["state"]) == (200, "running")
        worker.progress(job["id"], attempt, 0.25)
        moved = caller.get(url, headers={"If-None-Match": running.headers["ETag"]})
        assert moved.json()["progress"]["fraction"] == 0.25

    def test_a_finished_job_tells_all(self, caller: Caller, worker: FakeWorker) -> None:
        job = caller.create(gates=[{"metric": "perplexity_ratio", "max": 1.3}])
        worker.run(job["id"])
        done = caller.get(f"/v1/jobs/{job['id']}").json()
        assert (done["state"], done["terminal"], done["verdict"], done["attempt"]) == (
            "succeeded",
            True,
            "pass",
            1,
        )
        assert done["finished_at"] >= done["started_at"] >= done["created_at"]
        for name in ("events", "attempts", "artifacts", "manifest", "metrics", "verdict"):
            assert caller.get(done["links"][name]).status_code == 200, name

    def test_a_failed_job_says_why(self, caller: Caller, worker: FakeWorker) -> None:
        job = caller.create()
        worker.fail(job["id"])
        failed = caller.get(f"/v1/jobs/{job['id']}").json()
        assert (failed["state"], failed["error"]) == (
            "failed",
            {"code": "non_finite_weights", "message": "layer 3 holds NaN"},
        )

    @pytest.mark.parametrize(
        "job_id",
        ["0192f0c1-0000-7000-8000-000000000000", "0", "x" * 300, "..%2f..%2fetc", "%00", "%F0%9F%92%A9"],
    )
    def test_what_is_not_there_is_404(self, caller: Caller, job_id: str) -> None:
        response = caller.get(f"/v1/jobs/{job_id}")
        assert response.status_code == 404
        assert response.headers["Content-Type"] == "application/problem+json"


class TestEnding:
    def test_a_queued_job_is_cancelled_at_once(self, caller: Caller, worker: FakeWorker) -> None:
        job = caller.create()
        first = caller.post(f"/v1/jobs/{job['id']}/cancel")
        assert (first.status_code, first.json()["state"]) == (202, "cancelled")
        assert caller.post(f"/v1/jobs/{job['id']}/cancel").status_code == 200

    def test_a_running_job_is_asked_to_stop(
        self, caller: Caller, worker: FakeWorker, services: Services
    ) -> None:
        job = caller.create()
        attempt = worker.claim(job["id"])
        first = caller.post(f"/v1/jobs/{job['id']}/cancel")
        assert (first.status_code, first.json()["state"]) == (202, "cancelling")
        assert caller.post(f"/v1/jobs/{job['id']}/cancel").status_code == 202
        services.repository.mark_cancelled(job["id"], attempt)
        assert caller.get(f"/v1/jobs/{job['id']}").json()["state"] == "cancelled"

    def test_what_has_ended_otherwise_is_a_conflict(self, caller: Caller, worker: FakeWorker) -> None:
        job = caller.create()
        worker.run(job["id"])
        response = caller.post(f"/v1/jobs/{job['id']}/cancel")
        assert (response.status_code, response.json()["code"]) == (409, "job_ended")

    def test_retry_is_a_new_attempt_of_the_same_job(self, caller: Caller, worker: FakeWorker) -> None:
        job = caller.create()
        worker.fail(job["id"])
        response = caller.post(f"/v1/jobs/{job['id']}/retry")
        assert (response.status_code, response.json()["state"], response.json()["error"]) == (
            202,
            "queued",
            None,
        )
        assert caller.post(f"/v1/jobs/{job['id']}/retry").status_code == 409
        worker.run(job["id"])
        assert caller.get(f"/v1/jobs/{job['id']}").json()["attempt"] == 2
        assert caller.post(f"/v1/jobs/{job['id']}/retry").status_code == 409

    def test_only_ended_jobs_are_deleted_and_their_files_go(
        self, caller: Caller, worker: FakeWorker, services: Services
    ) -> None:
        job = caller.create()
        attempt = worker.claim(job["id"])
        assert caller.delete(f"/v1/jobs/{job['id']}").status_code == 409
        worker.succeed(job["id"], attempt)
        assert list(services.store.folders())
        response = caller.delete(f"/v1/jobs/{job['id']}")
        assert (response.status_code, response.content) == (204, b"")
        assert caller.get(f"/v1/jobs/{job['id']}").status_code == 404
        assert not list(services.store.folders())


class TestReuse:
    def test_equal_work_is_not_done_twice_when_asked(self, caller: Caller, worker: FakeWorker) -> None:
        first = caller.create()
        worker.run(first["id"])
        again = caller.create(reuse=True)
        assert (again["state"], again["reused_from"]) == ("succeeded", first["id"])
        assert caller.get(f"/v1/jobs/{again['id']}/metrics").json() == METRICS


class TestLimits:
    def test_a_tenant_with_too_many_jobs_is_told_when_to_come_back(
        self, make_app: Callable[..., FastAPI], make_key: Callable[..., str], worker: FakeWorker
    ) -> None:
        app = make_app(max_jobs_per_tenant=1)
        caller = Caller(app, make_key())
        caller.create()
        response = caller.post("/v1/jobs", json=prune())
        assert (response.status_code, response.json()["code"]) == (429, "too_many_jobs")
        assert int(response.headers["Retry-After"]) > 0
        assert "RateLimit" in response.headers

    def test_a_full_queue_is_unavailable(
        self, make_app: Callable[..., FastAPI], make_key: Callable[..., str], worker: FakeWorker
    ) -> None:
        app = make_app(max_queue_depth=1)
        caller = Caller(app, make_key())
        caller.create()
        response = caller.post("/v1/jobs", json=prune())
        assert (response.status_code, response.json()["code"]) == (503, "queue_full")
        assert int(response.headers["Retry-After"]) > 0
