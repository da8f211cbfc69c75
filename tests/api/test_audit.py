"""The audit: every write has a row with who, what, when, and by which request."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from api.context import Services
from tests.api.conftest import Caller, FakeWorker, prune


def rows(admin: Caller) -> list[dict[str, Any]]:
    return list(reversed(admin.get("/v1/audit?limit=100").json()["items"]))


def test_every_write_is_entered_with_its_actor_and_request(
    admin: Caller, caller: Caller, worker: FakeWorker, services: Services
) -> None:
    done = [caller.create(), caller.create()]
    caller.post(f"/v1/jobs/{done[0]['id']}/cancel")
    caller.post(f"/v1/jobs/{done[0]['id']}/retry")
    caller.post(f"/v1/jobs/{done[0]['id']}/cancel")
    caller.delete(f"/v1/jobs/{done[0]['id']}")
    hook = caller.post("/v1/webhooks", json={"url": "https://example.org/hook"}).json()
    caller.delete(f"/v1/webhooks/{hook['id']}")
    key = admin.post("/v1/keys", json={"tenant": "fresh"}).json()
    admin.delete(f"/v1/keys/{key['id']}")
    admin.patch("/v1/tenants/fresh", json={"weight": 2.0})
    trust = {"issuer": "https://gitlab.com", "audience": "us", "claims": {"project_id": 1}}
    made = admin.post("/v1/trust", json=trust).json()
    admin.delete(f"/v1/trust/{made['id']}")
    text = b"hello"
    file = {"name": "a.txt", "size": 5, "sha256": hashlib.sha256(text).hexdigest()}
    upload = caller.post("/v1/uploads", json={"kind": "calibration", "name": "a", "files": [file]}).json()
    caller.put(f"/v1/uploads/{upload['id']}/files/a.txt", content=text)
    caller.post(f"/v1/uploads/{upload['id']}/complete")
    caller.post(f"/v1/uploads/{upload['id']}/complete")  # nothing new
    response = caller.delete(f"/v1/uploads/{upload['id']}", headers={"X-Request-Id": "the-last"})
    assert response.status_code == 204

    found = rows(admin)
    first, second = done[0]["id"], done[1]["id"]
    assert [(row["action"], row["object"]) for row in found] == [
        ("job.create", first),
        ("job.create", second),
        ("job.cancel", first),
        ("job.retry", first),
        ("job.cancel", first),
        ("job.delete", first),
        ("webhook.create", hook["id"]),
        ("webhook.delete", hook["id"]),
        ("key.create", key["id"]),
        ("key.revoke", key["id"]),
        ("tenant.update", "fresh"),
        ("trust.create", made["id"]),
        ("trust.delete", made["id"]),
        ("upload.create", upload["id"]),
        ("upload.complete", upload["id"]),
        ("upload.delete", upload["id"]),
    ]
    keys = {key["tenant"]: key["id"] for key in admin.get("/v1/keys").json()["items"]}
    assert found[0]["actor"] == {"key_id": keys["acme"]}
    assert found[8]["actor"] == {"key_id": keys["ops"]}
    assert (found[0]["tenant"], found[8]["tenant"]) == ("acme", "fresh")
    assert found[-1]["request_id"] == "the-last"
    assert all(row["request_id"] and row["time"].endswith("Z") for row in found)
    assert caller.get(f"/v1/jobs/{second}").json()["created_by"] == {"key_id": keys["acme"]}


def test_what_is_refused_or_repeated_is_not_entered(
    admin: Caller, caller: Caller, worker: FakeWorker
) -> None:
    key = {"Idempotency-Key": "same"}
    job = caller.post("/v1/jobs", json=prune(), headers=key).json()
    caller.post("/v1/jobs", json=prune(), headers=key)
    caller.post("/v1/jobs", json=prune(priority=10_000))
    caller.post("/v1/jobs:validate", json=prune())
    assert caller.post(f"/v1/jobs/{job['id']}/retry").status_code == 409
    assert caller.delete(f"/v1/jobs/{job['id']}").status_code == 409
    assert caller.delete("/v1/webhooks/unknown").status_code == 404
    assert [row["action"] for row in rows(admin)] == ["job.create"]


def test_a_write_that_fails_leaves_no_entry(
    services: Services, caller: Caller, admin: Caller, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: object, **_named: object) -> None:
        raise RuntimeError("the transaction fails after the entry")

    monkeypatch.setattr("jobs.repository.creating._answer", fail)
    response = caller.post("/v1/jobs", json=prune(), headers={"Idempotency-Key": "k"})
    assert response.status_code == 500
    assert rows(admin) == []


def test_pages_follow_each_other(admin: Caller, caller: Caller, worker: FakeWorker) -> None:
    made = [caller.create()["id"] for _ in range(5)]
    seen, url = [], "/v1/audit?limit=2"
    while url:
        response = admin.get(url)
        seen += [row["object"] for row in response.json()["items"]]
        cursor = response.json()["next_cursor"]
        assert ("Link" in response.headers) == (cursor is not None)
        url = f"/v1/audit?limit=2&cursor={cursor}" if cursor else ""
    assert seen == list(reversed(made))
    assert admin.get("/v1/audit?cursor=x").json()["code"] == "cursor_invalid"
    assert caller.get("/v1/audit").status_code == 403
