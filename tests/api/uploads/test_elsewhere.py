"""Uploads where production keeps them: rows in Postgres, bytes in an S3 bucket."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from fastapi import FastAPI

from api.context import Services
from api.uploads import receiving
from jobs.uploads.checking import read_file
from tests.api.conftest import Caller, FakeWorker, prune
from tests.api.test_uploads import MODEL, declare, offset, put, send, states, stored
from tests.servers import S3, postgres_url, s3_server

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[str, S3]]:
    with postgres_url() as url, s3_server() as bucket:
        yield url, bucket


@pytest.fixture
def app(make_app: Callable[..., FastAPI], servers: tuple[str, S3]) -> Iterator[FastAPI]:
    """The app on Postgres and S3."""
    url, bucket = servers
    made = make_app(
        database_url=url,
        artifacts_url=f"s3://{bucket.bucket}/uploads",
        artifacts_s3_endpoint=bucket.endpoint,
        artifacts_s3_access_key=bucket.access_key,
        artifacts_s3_secret_key=bucket.secret_key,
    )
    yield made
    made.state.services.engine.dispose()


def test_a_model_is_sent_named_shared_and_deleted(
    caller: Caller, stranger: Caller, services: Services, worker: FakeWorker
) -> None:
    first, again = send(caller, MODEL), declare(caller, MODEL)
    body = prune(spec={"model": {"source": "upload", "id": first}})
    assert caller.post("/v1/jobs:validate", json=body).status_code == 200
    assert stranger.post("/v1/jobs:validate", json=body).json()["code"] == "upload_not_found"
    assert {state for state, _ in states(caller, again).values()} == {"here"}
    assert {state for state, _ in states(stranger, declare(stranger, MODEL)).values()} == {"missing"}
    assert len(stored(services)) == len(MODEL)
    for upload in (first, again):
        assert caller.delete(f"/v1/uploads/{upload}").status_code == 204
    assert stored(services) == []


def test_parts_come_in_any_order_and_are_read_as_one_file(
    caller: Caller, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receiving, "PART_BYTES", 1000)
    monkeypatch.setattr(receiving, "WRITE_BYTES", 300)
    text = b"".join(f"line {number}\n".encode() for number in range(600))
    upload = declare(caller, {"a.txt": text}, "calibration")
    size = len(text)
    for first, end in ((4000, size), (0, 1500), (1000, 4200)):
        assert put(caller, upload, "a.txt", text[first:end], first, size).status_code == 204
    assert offset(caller, upload, "a.txt") == size
    assert caller.post(f"/v1/uploads/{upload}/complete").status_code == 200
    file = services.repository.get_upload(upload).files[0]
    assert b"".join(read_file(services.store, file)) == text
    assert sum(part.size for part in file.parts) == size
    caller.delete(f"/v1/uploads/{upload}")
    assert stored(services) == []


def test_the_same_bytes_sent_by_several_at_once_are_kept_once(
    app: FastAPI, caller: Caller, services: Services
) -> None:
    text = b"x" * 300_000
    upload = declare(caller, {"a.txt": text}, "calibration")
    senders = [Caller(app, caller.key) for _ in range(4)]
    with ThreadPoolExecutor(len(senders)) as pool:
        sent = [pool.submit(put, each, upload, "a.txt", text, 0, len(text)) for each in senders]
        assert {one.result().status_code for one in sent} == {204}
    assert sum(part.size for part in services.repository.get_upload(upload).files[0].parts) == len(text)
    assert len(stored(services)) == 1
    caller.delete(f"/v1/uploads/{upload}")


def test_a_wrong_hash_leaves_nothing(caller: Caller, services: Services) -> None:
    upload = declare(caller, {"a.txt": b"right" * 100}, "calibration")
    put(caller, upload, "a.txt", b"wrong" * 100)
    response = caller.post(f"/v1/uploads/{upload}/complete")
    assert (response.status_code, response.json()["code"]) == (422, "upload_hash_mismatch")
    assert stored(services) == []
    assert states(caller, upload) == {"a.txt": ("missing", 0)}
