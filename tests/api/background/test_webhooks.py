"""Webhooks: who is told, how it is signed, and where it may not go."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from standardwebhooks import Webhook as Verifier

from api.background import egress
from api.background.deliveries import signed_headers
from api.background.loops import Loops
from tests.api.conftest import Caller, FakeWorker


class Receiver:
    """A real HTTP server on the loopback that keeps what it is sent."""

    def __init__(self) -> None:
        self.status = 204
        self.got: list[tuple[dict[str, str], bytes]] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.got.append(({name.lower(): value for name, value in self.headers.items()}, body))
                self.send_response(receiver.status)
                self.send_header("Location", "http://127.0.0.1:1/elsewhere")
                self.end_headers()

            def log_message(self, *_args: object) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook"
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.close()


@pytest.fixture
def open_app(make_app: Callable[..., FastAPI]) -> FastAPI:
    """An app that may send to the loopback, as in development."""
    return make_app(allow_loopback_webhooks=True)


@pytest.fixture
def owner(open_app: FastAPI, make_key: Callable[..., str]) -> Caller:
    return Caller(open_app, make_key())


def deliver(app: FastAPI) -> bool:
    """One round of the loop."""

    async def once() -> bool:
        loops = Loops(app.state.services)
        try:
            return await loops.deliver()
        finally:
            await loops.close()

    return asyncio.run(once())


def test_the_end_of_a_job_is_told_and_signed(
    open_app: FastAPI, owner: Caller, worker: FakeWorker, receiver: Receiver
) -> None:
    hook = owner.post("/v1/webhooks", json={"url": receiver.url})
    assert hook.status_code == 201, hook.text
    secret = hook.json()["secret"]
    assert secret not in owner.get("/v1/webhooks").text
    job = owner.create()
    worker.run(job["id"])
    assert deliver(open_app)
    assert not deliver(open_app)
    ((headers, body),) = receiver.got
    message = Verifier(secret).verify(body, headers)
    assert (message["type"], message["data"]["id"]) == ("job.succeeded", job["id"])
    listed = owner.get(f"/v1/webhooks/{hook.json()['id']}/deliveries").json()["items"]
    assert [(item["state"], item["tries"], item["last_status"]) for item in listed] == [("delivered", 1, 204)]


def test_a_jobs_own_url_is_told_too(
    open_app: FastAPI, make_key: Callable[..., str], worker: FakeWorker, receiver: Receiver
) -> None:
    owner = Caller(open_app, make_key("acme", "admin"))
    secret = owner.post("/v1/keys", json={"tenant": "acme"}).json()["webhook_secret"]
    job = owner.create(webhook_url=receiver.url)
    worker.fail(job["id"])
    deliver(open_app)
    ((headers, body),) = receiver.got
    message = Verifier(secret).verify(body, headers)
    assert (message["type"], message["data"]["error"]["code"]) == ("job.failed", "non_finite_weights")


@pytest.mark.parametrize("status", [500, 404, 302, 307])
def test_what_is_not_2xx_is_tried_again_and_redirects_are_not_followed(
    open_app: FastAPI, owner: Caller, worker: FakeWorker, receiver: Receiver, status: int
) -> None:
    receiver.status = status
    hook = owner.post("/v1/webhooks", json={"url": receiver.url}).json()
    worker.run(owner.create()["id"])
    deliver(open_app)
    (item,) = owner.get(f"/v1/webhooks/{hook['id']}/deliveries").json()["items"]
    assert (item["state"], item["last_status"]) == ("pending", status)
    assert item["next_try_at"] is not None
    assert len(receiver.got) == 1


def test_redelivery_sends_the_same_message_again(
    open_app: FastAPI, owner: Caller, worker: FakeWorker, receiver: Receiver
) -> None:
    hook = owner.post("/v1/webhooks", json={"url": receiver.url}).json()
    worker.run(owner.create()["id"])
    deliver(open_app)
    (item,) = owner.get(f"/v1/webhooks/{hook['id']}/deliveries").json()["items"]
    again = owner.post(f"/v1/webhooks/{hook['id']}/redeliver", json={"delivery_id": item["id"]})
    assert (again.status_code, again.json()) == (202, {"scheduled": 1})
    deliver(open_app)
    first, second = receiver.got
    assert first[0]["webhook-id"] == second[0]["webhook-id"]
    assert first[1] == second[1]
    url = f"/v1/webhooks/{hook['id']}/deliveries/{item['id']}/redeliver"
    assert owner.post(url).status_code == 202
    assert owner.post(f"/v1/webhooks/{hook['id']}/redeliver", json={"delivery_id": "x"}).status_code == 404


def test_only_the_wished_events_are_sent(
    open_app: FastAPI, owner: Caller, worker: FakeWorker, receiver: Receiver
) -> None:
    owner.post("/v1/webhooks", json={"url": receiver.url, "events": ["job.failed"]})
    worker.run(owner.create()["id"])
    worker.fail(owner.create()["id"])
    deliver(open_app)
    assert [json.loads(body)["type"] for _, body in receiver.got] == ["job.failed"]


def test_a_deleted_webhook_is_told_nothing(
    open_app: FastAPI, owner: Caller, worker: FakeWorker, receiver: Receiver
) -> None:
    hook = owner.post("/v1/webhooks", json={"url": receiver.url}).json()
    assert owner.delete(f"/v1/webhooks/{hook['id']}").status_code == 204
    assert owner.delete(f"/v1/webhooks/{hook['id']}").status_code == 404
    worker.run(owner.create()["id"])
    deliver(open_app)
    assert receiver.got == []


def test_the_signature_is_the_standards_own() -> None:
    """The test vector of the Standard Webhooks specification's reference libraries."""
    from jobs.rows import Delivery

    delivery = Delivery(
        id="msg_p5jXN8AQM9LWM0D4loKWxJek",
        tenant="acme",
        webhook_id=None,
        job_id="x",
        url="https://example.org",
        secret="whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        event_type="test",
        payload='{"test": 2432232314}',
        state="pending",
        tries=0,
        next_try_at=None,
        last_status=None,
        last_error=None,
        created_at=0,
        delivered_at=None,
    )
    headers = signed_headers(delivery, datetime.fromtimestamp(1614265330, UTC))
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    assert headers["webhook-timestamp"] == "1614265330"


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org/hook",
        "ftp://example.org",
        "https://",
        "//example.org",
        "not a url",
        "https://user:pass@example.org/",
        "https://127.0.0.1/",
        "https://127.1/",
        "https://2130706433/",
        "https://0x7f000001/",
        "https://localhost/",
        "https://a.localhost/",
        "https://10.0.0.8/",
        "https://192.168.1.1:8443/",
        "https://169.254.169.254/latest/meta-data",
        "https://100.64.0.1/",
        "https://0.0.0.0/",
        "https://224.0.0.1/",
        "https://239.255.255.250/",
        "https://255.255.255.255/",
        "https://[::1]/",
        "https://[::ffff:127.0.0.1]/",
        "https://[fe80::1]/",
        "https://[fd00::1]/",
        "https://[ff0e::1]/",
        "https://[64:ff9b::7f00:1]/",
        "https://[2002:7f00:1::]/",
    ],
)
def test_urls_into_the_own_network_are_refused(caller: Caller, url: str) -> None:
    response = caller.post("/v1/webhooks", json={"url": url})
    assert (response.status_code, response.json()["code"]) == (422, "webhook_url_invalid")
    assert response.json()["errors"][0]["loc"] == ["body", "url"]


def test_unknown_events_are_refused(caller: Caller) -> None:
    body = {"url": "https://example.org/hook", "events": ["job.started"]}
    assert caller.post("/v1/webhooks", json=body).status_code == 422


class TestEgress:
    @pytest.mark.parametrize(
        "answers",
        [
            ["127.0.0.1"],
            ["93.184.215.14", "10.0.0.1"],
            ["::1"],
            ["::ffff:10.0.0.1"],
            ["169.254.169.254"],
            ["224.0.0.1"],
        ],
    )
    def test_a_name_that_resolves_inwards_is_refused(
        self, monkeypatch: pytest.MonkeyPatch, answers: list[str]
    ) -> None:
        refuse_to_connect(monkeypatch, answers)
        with pytest.raises(egress.EgressRefusedError):
            asyncio.run(send("https://rebinding.example/"))

    def test_the_connection_goes_to_the_address_that_was_checked(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked = refuse_to_connect(monkeypatch, ["93.184.215.14"])
        seen: list[httpx.Request] = []

        async def story() -> int:
            def answer(request: httpx.Request) -> httpx.Response:
                seen.append(request)
                return httpx.Response(302, headers={"Location": "http://127.0.0.1/"})

            async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as client:
                return await egress.post(client, "https://example.org/a?b=c", b"{}", {}, allow_loopback=False)

        assert asyncio.run(story()) == 302
        assert asked == ["example.org"]  # resolved once
        (request,) = seen
        assert str(request.url) == "https://93.184.215.14/a?b=c"
        assert request.headers["Host"] == "example.org"
        assert request.extensions["sni_hostname"] == "example.org"

    def test_the_client_uses_no_proxy_of_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:3128")
        assert not egress.make_client()._mounts


def refuse_to_connect(monkeypatch: pytest.MonkeyPatch, answers: list[str]) -> list[str]:
    """Let every name resolve to `answers`; returns the names that were asked for."""
    asked: list[str] = []

    async def getaddrinfo(_loop: object, host: str, port: int, **_kwargs: object) -> list[Any]:
        asked.append(host)
        return [(0, 0, 0, "", (answer, port)) for answer in answers]

    monkeypatch.setattr(asyncio.base_events.BaseEventLoop, "getaddrinfo", getaddrinfo)
    return asked


async def send(url: str) -> int:
    client = egress.make_client()
    try:
        return await egress.post(client, url, b"{}", {}, allow_loopback=False)
    finally:
        await client.aclose()
