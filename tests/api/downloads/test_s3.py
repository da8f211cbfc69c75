"""Downloads from an S3 store look the same as from a disk: the bytes, ETags, digests and ranges."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import pytest
from fastapi import FastAPI

from jobs.rows import Artifact
from tests.api.conftest import FILES, Caller, FakeWorker
from tests.servers import S3, s3_server

pytestmark = pytest.mark.server
REQUESTS = [
    {},
    {"Range": "bytes=5-14"},
    {"Range": "bytes=-3"},
    {"Range": "bytes=0-1,4-5"},
    {"Range": "bytes=999999-"},
]


@pytest.fixture(scope="module")
def bucket() -> Iterator[S3]:
    """An S3 server of this module's own."""
    with s3_server() as server:
        yield server


def stored_in(bucket: S3, behind: str = "") -> dict[str, str]:
    """The settings of an app that keeps its artifacts there."""
    return {
        "artifacts_url": f"s3://{bucket.bucket}{behind}",
        "artifacts_s3_endpoint": bucket.endpoint,
        "artifacts_s3_access_key": bucket.access_key,
        "artifacts_s3_secret_key": bucket.secret_key,
    }


def started_job(served: FastAPI, make_key: Callable[..., str]) -> tuple[FakeWorker, Caller, str]:
    """A worker and a caller of the app, and the id of a job that was created."""
    worker = FakeWorker(served.state.services)
    worker.beat()
    caller = Caller(served, make_key())
    return worker, caller, caller.create()["id"]


def test_links_lead_to_the_same_answers_as_on_disk(
    bucket: S3, app: FastAPI, make_app: Callable[..., FastAPI], make_key: Callable[..., str]
) -> None:
    remote = make_app(**stored_in(bucket, "/some/prefix"))
    answers = []
    for served in (app, remote):
        worker, caller, job = started_job(served, make_key)
        worker.run(job)
        found = []
        for name in (*sorted(FILES), "*"):
            link = caller.post(f"/v1/jobs/{job}/artifacts/{name}/links").json()["url"]
            for headers in REQUESTS:
                response = caller.get(urlsplit(link).path, headers=headers, follow_redirects=False)
                shown = {
                    k: response.headers.get(k) for k in ("Content-Range", "Content-Type", "Content-Length")
                }
                if name != "*":  # the archive's folder is named after the job
                    shown |= {k: response.headers.get(k) for k in ("ETag", "Repr-Digest")}
                    shown |= {"body": "" if response.status_code == 416 else str(response.content)}
                if response.status_code == 416:
                    shown["Content-Length"] = None  # a problem document carries an id
                found.append((name, str(headers), response.status_code, shown))
        answers.append(found)
        assert caller.delete(f"/v1/jobs/{job}").status_code == 204
        assert not list(served.state.services.store.folders())
    assert answers[0] == answers[1]
    assert {status for _, _, status, _ in answers[0]} == {200, 206, 416}


def test_a_lost_object_is_not_found(
    bucket: S3, make_app: Callable[..., FastAPI], make_key: Callable[..., str], app: FastAPI
) -> None:
    served = make_app(**stored_in(bucket))
    worker, caller, job = started_job(served, make_key)
    worker.run(job)
    served.state.services.store.delete(f"{job}/1")
    response = caller.get(f"/v1/jobs/{job}/artifacts/config.json")
    assert (response.status_code, response.json()["code"]) == (404, "artifact_missing")


def test_a_job_is_gone_even_if_its_files_cannot_be_removed_yet(
    bucket: S3, make_app: Callable[..., FastAPI], make_key: Callable[..., str], app: FastAPI
) -> None:
    served = make_app(**stored_in(bucket, "-that-is-not-there"))
    worker, caller, job = started_job(served, make_key)
    attempt = worker.claim(job)
    weights = Artifact("model.safetensors", "x/y", 1, "ab" * 32, f"{job}/{attempt}")
    served.state.services.repository.mark_succeeded(
        job, attempt, artifacts=[weights], archive=None, metrics={}, publish=lambda: None
    )
    assert caller.delete(f"/v1/jobs/{job}").status_code == 204
    assert caller.get(f"/v1/jobs/{job}").status_code == 404
