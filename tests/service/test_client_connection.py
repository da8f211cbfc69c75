"""The client when connections drop and services are busy, without a service."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.client import (
    ClientError,
    DownloadError,
    OptipfairClient,
    RefusedError,
    UnreachableError,
    connection,
)
from service.client.connection import asked

JOB = {"id": "j", "state": "queued", "terminal": False, "verdict": None}
CONTENT = bytes(range(256)) * 100
SHA256 = hashlib.sha256(CONTENT).hexdigest()
Answer = httpx.Response | Exception


@pytest.fixture(autouse=True)
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that were made, in no time: a clock that only they move."""
    pauses: list[float] = []
    monkeypatch.setattr(connection.time, "sleep", pauses.append)
    monkeypatch.setattr(connection.time, "monotonic", lambda: sum(pauses))
    return pauses


class Script:
    """Answers requests one after the other, and keeps them."""

    def __init__(self, *answers: Answer) -> None:
        self.answers, self.requests = list(answers), list[httpx.Request]()

    def __call__(self, request: httpx.Request) -> httpx.Response:
        request.read()
        self.requests.append(request)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


def client_of(script: Callable[[httpx.Request], httpx.Response]) -> OptipfairClient:
    return OptipfairClient("http://service", "ofk_x", transport=httpx.MockTransport(script))


def test_a_submission_over_a_dropped_connection_is_the_same_submission(slept: list[float]) -> None:
    busy = httpx.Response(503, headers={"Retry-After": "3"})
    in_flight = httpx.Response(409, headers={"Retry-After": "1"}, json={"code": "idempotency_in_flight"})
    script = Script(httpx.ReadError("reset"), in_flight, busy, httpx.Response(202, json=JOB))
    assert client_of(script).submit({"kind": "analyze"})["id"] == "j"
    assert len({request.headers["Idempotency-Key"] for request in script.requests}) == 1
    assert len({request.content for request in script.requests}) == 1
    assert slept[1:] == [1, 3]  # as the service asked


def test_two_submissions_have_two_keys() -> None:
    script = Script(httpx.Response(202, json=JOB))
    client = client_of(script)
    client.submit({})
    client.submit({})
    assert len({request.headers["Idempotency-Key"] for request in script.requests}) == 2


def test_patience_ends(slept: list[float]) -> None:
    with pytest.raises(UnreachableError, match="no answer from http://service: refused"):
        client_of(Script(httpx.ConnectError("refused"))).job("j")
    assert 3 < sum(slept) <= 5
    with pytest.raises(RefusedError, match=r"503 queue_full\): full"):
        client_of(Script(httpx.Response(503, json={"code": "queue_full", "detail": "full"}))).job("j")


def test_a_service_that_answered_before_is_waited_for_longer(slept: list[float]) -> None:
    script = Script(httpx.Response(200, json=JOB), httpx.ConnectError("refused"))
    client = client_of(script)
    client.job("j")
    with pytest.raises(UnreachableError):
        client.job("j")
    assert 200 < sum(slept) <= 300


def said(*lines: tuple[str, str]) -> bytes:
    events = [f"event: line\ndata: {text}\nid: {number}\n\n" for number, text in lines]
    return "".join(["retry: 2000\n\n", ": ping\n\n", *events]).encode()


class Cut(httpx.SyncByteStream):
    """A body that breaks off after its last piece."""

    def __init__(self, *pieces: bytes) -> None:
        self.pieces = pieces

    def __iter__(self) -> Iterator[bytes]:
        yield from self.pieces
        raise httpx.ReadError("reset")


def test_a_followed_log_goes_on_behind_the_last_line_that_came(slept: list[float]) -> None:
    whole = said(("1.0", "begun"), ("1.1", "a\u2028b: c"))
    script = Script(
        httpx.Response(200, stream=Cut(whole[:40], whole[40:], b"data: half a li")),
        httpx.Response(503, headers={"Retry-After": "3"}),
        httpx.Response(200, content=said(("1.2", "more"))),
        httpx.Response(200, json={**JOB, "state": "running"}),  # the service restarted, the job goes on
        httpx.Response(200, content=said(("1.3", "done"))),
        httpx.Response(200, json={**JOB, "terminal": True}),
    )
    lines = list(client_of(script).follow_logs("j", tail=5))
    assert lines == ["begun", "a\u2028b: c", "more", "done"]
    streams = [request for request in script.requests if request.url.path.endswith("/logs")]
    assert [request.headers.get("Last-Event-ID") for request in streams] == [None, "1.1", "1.1", "1.2"]
    assert [request.url.query for request in streams] == [b"tail=5", b"", b"", b""]
    assert 3 in slept


def test_a_log_that_there_is_none_of_is_refused_at_once(slept: list[float]) -> None:
    script = Script(httpx.Response(404, json={"code": "job_not_found", "detail": "no such job"}))
    with pytest.raises(RefusedError, match="no such job"):
        list(client_of(script).follow_logs("j"))
    assert slept == []


def test_a_refusal_is_not_tried_again_and_names_each_field(slept: list[float]) -> None:
    errors = [{"loc": ["body", "spec", name], "detail": "wrong"} for name in ("model", "seed")]
    script = Script(httpx.Response(422, json={"code": "validation_failed", "detail": "no", "errors": errors}))
    with pytest.raises(RefusedError, match=r"body\.spec\.model: wrong") as caught:
        client_of(script).submit({})
    assert (caught.value.status, caught.value.code, len(script.requests), slept) == (
        422,
        "validation_failed",
        1,
        [],
    )


@pytest.mark.parametrize("call", [OptipfairClient.retry, OptipfairClient.delete])
def test_what_must_not_happen_twice_is_not_sent_twice(call: Any) -> None:
    script = Script(httpx.ReadError("reset"))
    with pytest.raises(UnreachableError):
        call(client_of(script), "j")
    assert len(script.requests) == 1


def test_a_redirect_is_not_followed_with_the_key() -> None:
    script = Script(httpx.Response(302, headers={"Location": "http://elsewhere/"}))
    with pytest.raises(RefusedError):
        client_of(script).job("j")
    assert len(script.requests) == 1


def test_waiting_asks_for_the_next_change_only() -> None:
    running, ended = {**JOB, "state": "running"}, {**JOB, "state": "succeeded", "terminal": True}
    script = Script(
        httpx.Response(200, json=JOB, headers={"ETag": '"1"'}),
        httpx.Response(304, headers={"ETag": '"1"'}),
        httpx.Response(200, json=running, headers={"ETag": '"2"'}),
        httpx.Response(200, json=ended, headers={"ETag": '"3"'}),
    )
    told: list[str] = []
    job = client_of(script).wait("j", on_change=lambda job: told.append(job["state"]))
    assert (job["state"], told) == ("succeeded", ["queued", "running", "succeeded"])
    asked_for = [(r.headers.get("If-None-Match"), r.headers.get("Prefer")) for r in script.requests]
    assert asked_for == [(None, None), ('"1"', "wait=30"), ('"1"', "wait=30"), ('"2"', "wait=30")]


class Body(httpx.SyncByteStream):
    """A body in pieces; if it is cut, the connection drops behind them."""

    def __init__(self, content: bytes, *, cut: bool = False) -> None:
        self.content, self.cut = content, cut

    def __iter__(self) -> Iterator[bytes]:
        yield from (self.content[start : start + 4096] for start in range(0, len(self.content), 4096))
        if self.cut:
            raise httpx.ReadError("reset")


def files(*artifacts: tuple[str, str]) -> list[dict[str, Any]]:
    size = len(CONTENT)
    return [{"name": n, "size": size, "sha256": s, "links": {"self": f"/files/{n}"}} for n, s in artifacts]


def test_a_download_that_is_cut_goes_on_where_it_was(tmp_path: Path) -> None:
    offered: list[str | None] = []

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/artifacts"):
            return httpx.Response(200, json=files(("model", SHA256)))
        offered.append(request.headers.get("Range"))
        start = int((offered[-1] or "bytes=0-").removeprefix("bytes=").rstrip("-"))
        assert not start or request.headers["If-Range"] == f'"sha256-{SHA256}"'
        piece = CONTENT[start : start + 10_000]
        cut = start + len(piece) < len(CONTENT)
        return httpx.Response(206 if start else 200, stream=Body(piece, cut=cut))

    [path] = client_of(answer).download("j", tmp_path)
    assert path.read_bytes() == CONTENT
    assert offered == [None, "bytes=10000-", "bytes=20000-"]
    client_of(answer).download("j", tmp_path)
    assert len(offered) == 3  # it is here already


def test_a_file_with_another_hash_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/artifacts"):
            return httpx.Response(200, json=files(("model", "0" * 64)))
        return httpx.Response(200, stream=Body(CONTENT))

    with pytest.raises(DownloadError, match="SHA-256"):
        client_of(answer).download("j", tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/b", "..", "", "c:x", "a\\b", "a\x1b"])
def test_a_name_that_leads_out_of_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    script = Script(httpx.Response(200, json=files((name, SHA256))))
    with pytest.raises(DownloadError, match="can't be called"):
        client_of(script).download("j", tmp_path)
    assert len(script.requests) == 1


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ({}, None),
        ({"Retry-After": "7"}, 7),
        ({"Retry-After": "Wed, 01 Jan 2020 00:00:00 GMT"}, 0),
        ({"Retry-After": "x"}, None),
    ],
)
def test_retry_after_is_seconds_or_a_date(header: dict[str, str], seconds: float | None) -> None:
    assert asked(header) == seconds


@pytest.mark.parametrize(
    ("url", "key"), [("service", "k"), ("ftp://x", "k"), ("http://x", ""), ("http://x", "é")]
)
def test_what_can_not_be_a_url_or_a_key_is_said(url: str, key: str) -> None:
    with pytest.raises(ClientError):
        OptipfairClient(url, key)


def test_a_verb_that_shows_nothing_loads_nothing_that_draws() -> None:
    code = """
import sys
from service.cli import app
try:
    app(["submit", "/nowhere/job.json", "--key", "ofk_x", "--url", "http://127.0.0.1:9"])
except SystemExit as end:
    print(end.code, sorted({"rich", "pygments", "click", "sqlalchemy"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "4 []\n", done.stdout + done.stderr
