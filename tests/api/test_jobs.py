"""Creating, reading and ending jobs over HTTP."""

from __future__ import annotations

from tests.api.conftest import Caller, FakeWorker, prune


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
    assert caller.get(job["links"]["self"]).json()["id"] == job["id"]
