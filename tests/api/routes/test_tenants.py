"""Shares of tenants over HTTP, and a job's place in the queue."""

from __future__ import annotations

import pytest

from jobs.repository.whole import shares
from tests.api.conftest import Caller, FakeWorker


@pytest.fixture(autouse=True)
def see_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Positions are as of now, not of the last second."""
    monkeypatch.setattr(shares, "STANDING_SECONDS", -1.0)


def test_tenants_are_listed_with_what_they_run(admin: Caller, caller: Caller, worker: FakeWorker) -> None:
    worker.claim(caller.create()["id"])
    caller.create()
    found = {item["name"]: item for item in admin.get("/v1/tenants").json()["items"]}
    assert set(found) == {"acme", "ops"}
    assert {name: found["acme"][name] for name in ("weight", "running", "queued")} == {
        "weight": 1.0,
        "running": 1,
        "queued": 1,
    }
    assert found["ops"]["engine_seconds_last_hour"] == 0


def test_a_weight_is_changed_and_kept(admin: Caller, caller: Caller) -> None:
    assert admin.patch("/v1/tenants/acme", json={"weight": 2}).json()["weight"] == 2
    found = {item["name"]: item["weight"] for item in admin.get("/v1/tenants").json()["items"]}
    assert found == {"acme": 2, "ops": 1}
    refused = admin.patch("/v1/tenants/nobody", json={"weight": 2})
    assert (refused.status_code, refused.json()["code"]) == (404, "tenant_not_found")


@pytest.mark.parametrize(
    "body", [{}, {"weight": 0}, {"weight": -1}, {"weight": "2"}, {"weight": 1, "name": "x"}]
)
def test_another_weight_is_refused(admin: Caller, caller: Caller, body: dict[str, object]) -> None:
    assert admin.patch("/v1/tenants/acme", json=body).status_code == 422


def test_a_queued_job_says_how_many_go_before_it(
    caller: Caller, stranger: Caller, worker: FakeWorker
) -> None:
    jobs = [caller.create() for _ in range(3)]
    theirs = stranger.create()
    assert jobs[2]["queue_position"] is None  # known when the job is read, not when it is made

    def place(visitor: Caller, job: dict[str, object]) -> object:
        return visitor.get(f"/v1/jobs/{job['id']}").json()["queue_position"]

    assert [place(caller, job) for job in jobs] == [0, 2, 3]
    assert place(stranger, theirs) == 1
    worker.claim(jobs[0]["id"])
    assert place(caller, jobs[0]) is None
    assert place(stranger, theirs) == 0
