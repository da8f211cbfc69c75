"""Signed links and what they lead to."""

from __future__ import annotations

import base64
import hashlib
import io
import tarfile
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

import pytest
from fastapi import FastAPI

from api.context import Services
from tests.api.conftest import FILES, Caller, FakeWorker

NAME = "model.safetensors"
DATA = FILES[NAME]


@pytest.fixture
def job(caller: Caller, worker: FakeWorker) -> dict[str, Any]:
    made = caller.create()
    worker.run(made["id"])
    return made


@pytest.fixture
def link(caller: Caller, job: dict[str, Any]) -> str:
    return make(caller, job, NAME)


def make(caller: Caller, job: dict[str, Any], name: str, **body: Any) -> str:
    response = caller.post(f"/v1/jobs/{job['id']}/artifacts/{name}/links", json=body)
    assert response.status_code == 201, response.text
    return urlsplit(response.json()["url"]).path


class TestMaking:
    def test_a_link_is_absolute_and_says_when_it_ends(self, caller: Caller, job: dict[str, Any]) -> None:
        response = caller.post(f"/v1/jobs/{job['id']}/artifacts/{NAME}/links", json={"ttl_seconds": 600})
        link = response.json()
        assert response.status_code == 201
        assert link["url"].startswith("http://127.0.0.1:8000/v1/download/")
        assert link["url"].endswith(f"/{NAME}")
        assert link["sha256"] == hashlib.sha256(DATA).hexdigest()
        left = datetime.fromisoformat(link["expires_at"]).timestamp() - time.time()
        assert 590 < left < 610

    def test_a_body_is_not_needed(self, caller: Caller, job: dict[str, Any]) -> None:
        assert caller.post(f"/v1/jobs/{job['id']}/artifacts/{NAME}/links").status_code == 201

    @pytest.mark.parametrize("ttl", [0, -1, 86_401, "60", 1.5, True])
    def test_its_life_is_bounded(self, caller: Caller, job: dict[str, Any], ttl: object) -> None:
        response = caller.post(f"/v1/jobs/{job['id']}/artifacts/{NAME}/links", json={"ttl_seconds": ttl})
        assert response.status_code == 422
        assert response.json()["errors"][0]["loc"] == ["body", "ttl_seconds"]

    @pytest.mark.parametrize("name", ["absent.bin", "..", "%2e%2e%2fsecret", "config.json%00"])
    def test_only_artifacts_can_be_linked(self, caller: Caller, job: dict[str, Any], name: str) -> None:
        assert caller.post(f"/v1/jobs/{job['id']}/artifacts/{name}/links", json={}).status_code in (404, 405)


class TestWhole:
    def test_the_bytes_come_without_a_key(self, nobody: Caller, link: str) -> None:
        response = nobody.get(link, follow_redirects=False)
        digest = hashlib.sha256(DATA).digest()
        assert (response.status_code, response.content) == (200, DATA)
        assert response.headers["ETag"] == f'"sha256-{digest.hex()}"'
        assert response.headers["Repr-Digest"] == f"sha-256=:{base64.b64encode(digest).decode()}:"
        assert response.headers["Content-Disposition"] == f'attachment; filename="{NAME}"'
        assert response.headers["Content-Length"] == str(len(DATA))
        assert response.headers["Accept-Ranges"] == "bytes"
        assert response.headers["Referrer-Policy"] == "no-referrer"
        assert response.headers["X-Content-Type-Options"] == "nosniff"

    def test_head_gives_the_same_headers(self, nobody: Caller, link: str) -> None:
        whole, head = nobody.get(link), nobody.head(link)
        assert (head.status_code, head.content) == (200, b"")
        for name in ("ETag", "Repr-Digest", "Content-Length", "Content-Type", "Content-Disposition"):
            assert head.headers[name] == whole.headers[name], name

    def test_bytes_that_are_known_are_not_sent_again(self, nobody: Caller, link: str) -> None:
        tag = nobody.head(link).headers["ETag"]
        assert nobody.get(link, headers={"If-None-Match": tag}).status_code == 304
        assert nobody.get(link, headers={"If-Match": '"other"'}).status_code == 412

    def test_an_empty_file_is_a_file(self, caller: Caller, worker: FakeWorker, nobody: Caller) -> None:
        job = caller.create()
        worker.run(job["id"], files={"empty.txt": b""})
        link = make(caller, job, "empty.txt")
        assert (nobody.get(link).status_code, nobody.get(link).content) == (200, b"")
        assert nobody.get(link, headers={"Range": "bytes=0-"}).status_code == 416

    def test_a_page_among_the_files_cannot_act_as_this_site(
        self, caller: Caller, worker: FakeWorker, nobody: Caller
    ) -> None:
        job = caller.create()
        worker.run(job["id"], files={"report.html": b"<script>alert(1)</script>"})
        response = nobody.get(make(caller, job, "report.html"))
        assert response.headers["Content-Security-Policy"].startswith("sandbox")


class TestRanges:
    @pytest.mark.parametrize(
        ("asked", "first", "last"),
        [("bytes=0-9", 0, 9), ("bytes=100-", 100, len(DATA) - 1), ("bytes=-7", len(DATA) - 7, len(DATA) - 1)],
    )
    def test_a_part(self, nobody: Caller, link: str, asked: str, first: int, last: int) -> None:
        response = nobody.get(link, headers={"Range": asked})
        assert (response.status_code, response.content) == (206, DATA[first : last + 1])
        assert response.headers["Content-Range"] == f"bytes {first}-{last}/{len(DATA)}"

    def test_an_interrupted_download_goes_on(self, nobody: Caller, link: str) -> None:
        start = nobody.get(link, headers={"Range": "bytes=0-4999"})
        headers = {"Range": "bytes=5000-", "If-Range": start.headers["ETag"]}
        rest = nobody.get(link, headers=headers)
        assert rest.status_code == 206
        assert start.content + rest.content == DATA

    @pytest.mark.parametrize("condition", ['"other"', "Wed, 21 Oct 2015 07:28:00 GMT"])
    def test_if_range_of_other_bytes_gives_the_whole(self, nobody: Caller, link: str, condition: str) -> None:
        response = nobody.get(link, headers={"Range": "bytes=5000-", "If-Range": condition})
        assert (response.status_code, response.content) == (200, DATA)

    @pytest.mark.parametrize("asked", ["bytes=0-3,10-12,-2", "bytes=" + ",".join(["0-"] * 500)])
    def test_several_ranges_at_once_give_the_whole(self, nobody: Caller, link: str, asked: str) -> None:
        response = nobody.get(link, headers={"Range": asked})
        assert (response.status_code, response.content) == (200, DATA)

    @pytest.mark.parametrize("asked", [f"bytes={len(DATA)}-", "bytes=-0"])
    def test_what_cannot_be_given_is_416(self, nobody: Caller, link: str, asked: str) -> None:
        response = nobody.get(link, headers={"Range": asked})
        assert (response.status_code, response.json()["code"]) == (416, "range_not_satisfiable")
        assert response.headers["Content-Range"] == f"bytes */{len(DATA)}"

    def test_head_takes_no_range(self, nobody: Caller, link: str) -> None:
        assert nobody.head(link, headers={"Range": "bytes=0-3"}).status_code == 200


class TestArchive:
    def test_all_files_come_in_one_tar(self, caller: Caller, nobody: Caller, job: dict[str, Any]) -> None:
        response = nobody.get(make(caller, job, "*"))
        assert response.status_code == 200
        assert response.headers["Content-Disposition"] == f'attachment; filename="{job["id"]}.tar"'
        digest = hashlib.sha256(response.content).hexdigest()
        assert response.headers["ETag"] == f'"sha256-{digest}"'
        with tarfile.open(fileobj=io.BytesIO(response.content)) as tar:
            files = {member.name: tar.extractfile(member) for member in tar if member.isfile()}
        contents = {name.partition("/")[2]: file.read() for name, file in files.items() if file}
        assert contents == FILES
        assert {name.partition("/")[0] for name in files} == {job["id"]}

    def test_any_part_of_it_can_be_had(self, caller: Caller, nobody: Caller, job: dict[str, Any]) -> None:
        link = make(caller, job, "*")
        whole = nobody.get(link).content
        for first, last in [(0, 0), (500, 1600), (3000, 9000), (len(whole) - 10, len(whole) - 1)]:
            part = nobody.get(link, headers={"Range": f"bytes={first}-{last}"})
            assert part.content == whole[first : last + 1]


class TestRefusals:
    """What is forged, altered, expired or replayed is in test_attacks."""

    def test_links_die_with_the_job(
        self, caller: Caller, nobody: Caller, job: dict[str, Any], link: str
    ) -> None:
        assert caller.delete(f"/v1/jobs/{job['id']}").status_code == 204
        assert nobody.get(link).status_code == 410
        assert nobody.head(link).status_code == 410

    def test_links_die_with_the_files(
        self, caller: Caller, nobody: Caller, services: Services, job: dict[str, Any], link: str
    ) -> None:
        from sqlalchemy import update

        from jobs.tables import jobs

        with services.engine.begin() as connection:
            connection.execute(update(jobs).values(artifacts_expire_at=1))
        services.repository.take_expired_artifacts()
        assert nobody.get(link).status_code == 410
        base = f"/v1/jobs/{job['id']}"
        files = f"{base}/artifacts"
        assert caller.get(files).json() == []
        for answer in (
            caller.get(f"{base}/manifest"),  # an empty one would look like a job without files
            caller.get(f"{files}/{NAME}"),
            caller.post(f"{files}/{NAME}/links"),
            caller.post(f"{files}/*/links"),
        ):
            assert (answer.status_code, answer.json()["code"]) == (410, "artifact_expired")
        assert caller.get(f"{base}/metrics").status_code == 200

    def test_bytes_that_vanished_are_not_found(
        self, nobody: Caller, services: Services, link: str, job: dict[str, Any]
    ) -> None:
        services.store.delete(f"{job['id']}/1")
        for headers in ({}, {"Range": "bytes=0-3"}, {"Range": "bytes=0-1,4-5"}):
            response = nobody.get(link, headers=headers)
            assert (response.status_code, response.json()["code"]) == (404, "artifact_missing")

    def test_tokens_are_not_logged(self, nobody: Caller, link: str, monkeypatch: pytest.MonkeyPatch) -> None:
        import structlog

        with structlog.testing.capture_logs() as lines:
            nobody.get(link)
        paths = [line["path"] for line in lines if line["event"] == "request"]
        assert paths == [f"/v1/download/[redacted]/{NAME}"]


def test_a_public_url_of_its_own_is_used(
    make_app: Callable[..., FastAPI], make_key: Callable[..., str], job: dict[str, Any]
) -> None:
    app = make_app(public_url="https://prune.example.org/base")
    caller = Caller(app, make_key())
    url = caller.post(f"/v1/jobs/{job['id']}/artifacts/{NAME}/links").json()["url"]
    assert url.startswith("https://prune.example.org/base/v1/download/")
