"""Attacks, each case named after what it imitates.

Others stand beside what they attack: forged tokens and what an issuer publishes in test_tokens, hostile
models and files in test_uploads, symlinks out of the models folder in tests/worker/inputs/test_local_files,
names that resolve inwards for webhooks in background/test_webhooks.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import structlog
from fastapi import FastAPI

from api.context import Services
from jobs.signing.links import LinkSigner
from jobs.signing.secret import Secrets
from tests.api.conftest import Caller, FakeWorker, prune
from tests.api.issuer import Issuer
from tests.api.test_tokens import exchange, rule

TRAVERSALS = {
    "plain": "../../../etc/passwd",
    "percent-encoded": "%2e%2e%2f%2e%2e%2fetc%2fpasswd",
    "percent-encoded twice": "%252e%252e%252fetc%252fpasswd",
    "overlong UTF-8": "%c0%ae%c0%ae%c0%afetc%c0%afpasswd",
    "backslashes": "..%5c..%5cetc%5cpasswd",
    "fullwidth dots": "%ef%bc%8e%ef%bc%8e/etc/passwd",
    "a NUL behind a good name": "config.json%00.png",
    "a semicolon": "..;/..;/etc/passwd",
    "an absolute path": "%2fetc%2fpasswd",
    "a drive letter": "c:%5cwindows",
    "a trailing dot": "config.json.",
    "a newline": "config.json%0a",
}


@pytest.fixture
def done(caller: Caller, worker: FakeWorker) -> str:
    job = caller.create()
    worker.run(job["id"])
    return str(job["id"])


@pytest.mark.parametrize("name", TRAVERSALS.values(), ids=TRAVERSALS.keys())
def test_path_traversal(caller: Caller, done: str, name: str) -> None:
    job = f"/v1/jobs/{done}"
    for path in (f"{job}/artifacts/{name}", f"/v1/download/x/{name}", f"/v1/jobs/{name}", f"/static/{name}"):
        response = caller.get(path, follow_redirects=False)
        assert response.status_code in (403, 404), (path, response.status_code)
        assert "root:" not in response.text
    assert caller.post(f"{job}/artifacts/{name}/links").status_code in (404, 405)


NAME = "config.json"


@dataclass(frozen=True)
class Links:
    """Makes links of a job, genuine but for what is asked otherwise."""

    services: Services
    job: str

    def token(self, name: str = NAME, signer: LinkSigner | None = None, seconds: int = 60) -> str:
        """The part of a link that is signed."""
        artifact = self.services.repository.get_artifact(self.job, name)
        assert artifact is not None
        return (signer or self.services.signer).sign(
            job_id=self.job,
            name=name,
            sha256=artifact.sha256,
            tenant="acme",
            expires_at=self.services.repository.now() // 1000 + seconds,
        )

    def spliced(self) -> str:
        """What one link says under the signature of another."""
        return self.token("metrics.json").partition(".")[0] + "." + self.token().partition(".")[2]


Forge = Callable[[Links], str]
STRANGER = LinkSigner(Secrets((b"x" * 64,)))
LINKS: dict[str, tuple[Forge, str]] = {
    "forged with another secret": (lambda made: f"{made.token(signer=STRANGER)}/{NAME}", "link_invalid"),
    "expired": (lambda made: f"{made.token(seconds=-1)}/{NAME}", "link_expired"),
    "expired and forged": (lambda made: f"{made.token(signer=STRANGER, seconds=-1)}/{NAME}", "link_invalid"),
    "another payload under the signature": (lambda made: f"{made.spliced()}/metrics.json", "link_invalid"),
    "without its signature": (lambda made: f"{made.token().partition('.')[0]}./{NAME}", "link_invalid"),
    "cut short": (lambda made: f"{made.token()[:-1]}/{NAME}", "link_invalid"),
    "made longer": (lambda made: f"{made.token()}A/{NAME}", "link_invalid"),
    "replayed for the weights": (lambda made: f"{made.token()}/model.safetensors", "link_invalid"),
    "replayed for the metrics": (lambda made: f"{made.token()}/metrics.json", "link_invalid"),
    "replayed for a file that begins alike": (lambda made: f"{made.token()}/{NAME}.bak", "link_invalid"),
    "replayed for all files": (lambda made: f"{made.token()}/*", "link_invalid"),
    "replayed in capitals": (lambda made: f"{made.token()}/CONFIG.JSON", "link_invalid"),
}


class TestLinks:
    @pytest.fixture
    def url(self, caller: Caller, done: str) -> str:
        made = caller.post(f"/v1/jobs/{done}/artifacts/config.json/links").json()["url"]
        return str(made).removeprefix("http://127.0.0.1:8000")

    def test_every_altered_character_is_noticed(self, nobody: Caller, url: str) -> None:
        assert nobody.get(url).status_code == 200
        head, token, name = url.rpartition("/")[0].rpartition("/")[0], url.split("/")[-2], "config.json"
        for place in range(0, len(token), 7):
            other = "A" if token[place] != "A" else "B"
            altered = token[:place] + other + token[place + 1 :]
            response = nobody.get(f"{head}/{altered}/{name}")
            assert response.status_code in (403, 410), (place, response.status_code)
            assert response.json()["code"] in ("link_invalid", "link_expired")

    @pytest.mark.parametrize(("forge", "code"), LINKS.values(), ids=LINKS.keys())
    def test_it_is_refused(
        self, services: Services, nobody: Caller, done: str, forge: Forge, code: str
    ) -> None:
        response = nobody.get(f"/v1/download/{forge(Links(services, done))}", follow_redirects=False)
        status = 410 if code == "link_expired" else 403
        assert (response.status_code, response.json()["code"]) == (status, code), response.text

    def test_it_opens_nothing_else(self, nobody: Caller, done: str, url: str) -> None:
        token = url.split("/")[-2]
        headers = {"Authorization": f"Bearer {token}"}
        assert nobody.get(f"/v1/jobs/{done}", headers=headers).status_code == 401
        assert nobody.get(f"/v1/jobs/{done}?token={token}").status_code == 401
        assert nobody.post(url).status_code == 405


def test_key_id_confusion(app: FastAPI, admin: Caller, caller: Caller) -> None:
    """The public id of a key, its hint or its hash is no key."""
    for key in admin.get("/v1/keys").json()["items"]:
        for guess in (key["id"], "ofk_" + key["id"], "ofk_" + key["hint"], key["hint"], "ofk_" + "0" * 64):
            assert Caller(app, guess).get("/v1/jobs").status_code == 401
    for name in ("X-Api-Key", "X-Forwarded-User", "Cookie", "Proxy-Authorization"):
        assert Caller(app, None).get("/v1/jobs", headers={name: f"Bearer {caller.key}"}).status_code == 401
    assert Caller(app, None).get(f"/v1/jobs?access_token={caller.key}").status_code == 401


INSIDE = {
    "loopback": "https://127.0.0.1/",
    "loopback, short": "https://127.1/",
    "loopback, decimal": "https://2130706433/",
    "loopback, hexadecimal": "https://0x7f000001/",
    "loopback, octal": "https://0177.0.0.1/",
    "loopback by name": "https://localhost/",
    "loopback by a name under it": "https://a.localhost/",
    "unspecified": "https://0.0.0.0/",
    "IPv6 loopback": "https://[::1]/",
    "IPv4-mapped": "https://[::ffff:10.0.0.1]/",
    "IPv4-compatible": "https://[::10.0.0.1]/",
    "NAT64": "https://[64:ff9b::a00:1]/",
    "6to4": "https://[2002:a00:1::1]/",
    "unique local": "https://[fd00::1]/",
    "link local": "https://[fe80::1]/",
    "metadata": "https://169.254.169.254/latest/meta-data",
    "CGNAT": "https://100.64.0.1/",
    "private": "https://192.168.0.1/",
    "benchmarks": "https://198.18.0.1/",
    "multicast": "https://224.0.0.1/",
    "broadcast": "https://255.255.255.255/",
    "a name and a password": "https://example.org:443@127.0.0.1/",
    "another scheme": "file:///etc/passwd",
    "gopher": "gopher://127.0.0.1:6379/_FLUSHALL",
    "a backslash": "https://example.org\\@127.0.0.1/",
    "a newline": "https://example.org/\r\nX: y",
}


@pytest.mark.parametrize("url", INSIDE.values(), ids=INSIDE.keys())
def test_ssrf_by_literal(caller: Caller, admin: Caller, worker: FakeWorker, url: str) -> None:
    assert caller.post("/v1/webhooks", json={"url": url}).status_code == 422
    assert caller.post("/v1/jobs", json=prune(webhook_url=url)).status_code == 422
    trust = {"issuer": url.rstrip("/"), "audience": "us", "claims": {"a": "b"}}
    assert admin.post("/v1/trust", json=trust).status_code == 422


@pytest.mark.parametrize("address", ["10.0.0.1", "100.64.0.1", "::ffff:10.0.0.1", "fd00::1"])
def test_ssrf_by_name_and_jwks_by_rebinding(
    admin: Caller, nobody: Caller, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    """A name that was harmless when the rule was made, and points inside when keys are fetched."""
    issuer = Issuer()
    host = "https://ci.example.org"
    assert admin.post("/v1/trust", json=rule(issuer, issuer=host)).status_code == 201

    async def inside(*_args: object, **_named: object) -> list[Any]:
        return [(socket.AF_INET6 if ":" in address else socket.AF_INET, 1, 6, "", (address, 443))]

    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", inside)
    response = exchange(nobody, issuer.token(iss=host))
    issuer.close()
    assert (response.status_code, response.json()["error"]) == (400, "invalid_grant")
    assert "globally routable" in response.json()["error_description"]
    assert address not in response.text


BOMBS = {
    "depth": b'{"kind":' + b"[" * 100_000,
    "depth in strings that do not end": b'"\\' * 100_000,
    "a number of a million digits": b'{"kind":"prune","priority":' + b"9" * 900_000 + b"}",
    "an exponent": b'{"kind":"prune","priority":1e999999999}',
    "the same field again and again": b'{"kind":"prune",' + b'"spec":{},' * 90_000 + b'"spec":{}}',
    "many fields": json.dumps({f"f{i}": i for i in range(50_000)}).encode(),
    "many labels": json.dumps(prune(labels={f"l{i}": "x" for i in range(20_000)})).encode(),
    "many texts": json.dumps(prune(spec={"calibration": {"texts": ["x"] * 50_000}})).encode(),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("raw", BOMBS.values(), ids=BOMBS.keys())
def test_json_bombs(caller: Caller, worker: FakeWorker, raw: bytes) -> None:
    for path in ("/v1/jobs", "/v1/uploads"):
        response = caller.post(path, content=raw)
        assert response.status_code in (413, 422), response.status_code
        assert len(response.content) < 50_000


def test_many_ranges(caller: Caller, done: str) -> None:
    path = f"/v1/jobs/{done}/artifacts/model.safetensors"
    ranges = "bytes=" + ",".join(f"{i}-{i + 1}" for i in range(0, 4000, 2))
    response = caller.get(path, headers={"Range": ranges})
    assert response.status_code in (200, 416)
    assert len(response.content) <= 10_240


INJECTED = "x\r\nSet-Cookie: a=b\r\n\r\n<script>"


def test_header_injection(caller: Caller, worker: FakeWorker) -> None:
    for value in ("x%0d%0aSet-Cookie:%20a=b", "%0aX-Evil:1"):
        for path in (f"/v1/jobs/{value}", f"/v1/jobs?cursor={value}", f"/v1/audit?cursor={value}"):
            response = caller.get(path)
            assert "set-cookie" not in response.headers
            assert "x-evil" not in response.headers
    response = caller.get("/v1/jobs", headers={"X-Request-Id": 'a" b\t<script>'})
    assert "<" not in response.headers["X-Request-Id"]
    assert caller.post("/v1/jobs", json=prune(labels={"team": INJECTED})).status_code == 422
    assert caller.post("/v1/webhooks", json={"url": f"https://example.org/{INJECTED}"}).status_code == 422


@pytest.fixture
def lines() -> Iterator[list[str]]:
    """Every log line of a test, as it would be printed."""
    kept: list[str] = []

    def keep(_logger: object, _name: str, event: Any) -> str:
        kept.append(json.dumps(event, default=str))
        return kept[-1]

    before = structlog.get_config()
    structlog.configure(processors=[keep], cache_logger_on_first_use=False)
    yield kept
    structlog.configure(**before)


def test_log_injection_and_secrets_in_logs(
    lines: list[str], make_app: Callable[..., FastAPI], services: Services, make_key: Callable[..., str]
) -> None:
    issuer = Issuer()
    app = make_app(allow_loopback_webhooks=True)
    caller, admin = Caller(app, make_key()), Caller(app, make_key("ops", "admin"))
    FakeWorker(app.state.services).beat()
    job = caller.create(spec={"evaluation": {"texts": ["a secret text"]}})
    FakeWorker(app.state.services).run(job["id"])
    link = caller.post(f"/v1/jobs/{job['id']}/artifacts/config.json/links").json()["url"]
    Caller(app, None).get(link)
    Caller(app, "ofk_" + "b" * 43).get("/v1/jobs")
    caller.get("/v1/jobs/x%0a%7b%22event%22:%22forged%22%7d%1b[2J")
    admin.post("/v1/trust", json=rule(issuer))
    token = issuer.token()
    issued = exchange(Caller(app, None), token).json()["access_token"]
    Caller(app, issued).get("/v1/jobs")
    webhook = caller.post("/v1/webhooks", json={"url": "https://example.org/secret-path"}).json()
    made = admin.post("/v1/keys", json={"tenant": "fresh"}).json()["key"]
    issuer.close()
    text = "\n".join(lines)
    assert job["id"] in text
    secrets = {
        "an API key": caller.key,
        "a new key": made,
        "an issued key": issued,
        "a wrong key": "b" * 43,
        "a CI system's token": token,
        "its signature": token.split(".")[2],
        "a link's token": link.split("/")[-2],
        "a webhook's secret": webhook["secret"],
        "a prompt": "a secret text",
    }
    for what, secret in secrets.items():
        assert secret not in text, what
    assert all("\n" not in line and "\x1b" not in line for line in lines)


def test_names_that_are_paths(caller: Caller, worker: FakeWorker) -> None:
    """The API answers of models from what workers report: nothing it is sent makes it open a path."""
    for name in ("..", "/etc", "a/../../etc", "tiny/..", "tiny\u0000", "~root", "$HOME", "file:///etc"):
        response = caller.post("/v1/jobs", json=prune(spec={"model": {"source": "local", "name": name}}))
        assert (response.status_code, response.json()["code"]) == (422, "validation_failed"), name
    for model in ("../x", "a/b/c", "https://evil.example.org/a", "a/b@main"):
        spec = {"model": {"source": "hub", "id": model, "revision": "0" * 40}}
        assert caller.post("/v1/jobs", json=prune(spec=spec)).status_code == 422
    spec = {"model": {"source": "hub", "id": "a/b", "revision": "main"}}  # not pinned: it could change
    assert caller.post("/v1/jobs", json=prune(spec=spec)).status_code == 422
