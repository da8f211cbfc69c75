"""Keyless CI: who is let in by a trust rule, as what, for how long, and who is not."""

from __future__ import annotations

import base64
import hmac
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fastapi import FastAPI
from joserfc import jwt
from joserfc.jwk import ECKey, RSAKey

from api.context import Services
from api.tokens.exchange import GRANT, JWT
from jobs.settings import Settings
from tests.api.conftest import Caller, FakeWorker
from tests.api.issuer import AUDIENCE, Issuer


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"allow_loopback_webhooks": True})


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    made = Issuer()
    yield made
    made.close()


def rule(issuer: Issuer, /, **changes: Any) -> dict[str, Any]:
    claims = {"repository_id": "4242", "ref": ["refs/heads/main", "refs/heads/next"]}
    made = {"issuer": issuer.url, "audience": AUDIENCE, "claims": claims, "tenant": "acme", **changes}
    return {name: value for name, value in made.items() if value is not None}


FORM = {"grant_type": GRANT, "subject_token_type": JWT}


def exchange(caller: Caller, token: str, **form: str) -> Any:
    fields = {"grant_type": GRANT, "subject_token": token, "subject_token_type": JWT, **form}
    return caller.post("/v1/token", data=fields)


@pytest.fixture
def trusted(admin: Caller, issuer: Issuer) -> dict[str, Any]:
    response = admin.post("/v1/trust", json=rule(issuer))
    assert response.status_code == 201, response.text
    return dict(response.json())


def refused(response: Any, error: str = "invalid_grant") -> str:
    assert response.status_code == 400, response.text
    document = response.json()
    assert set(document) == {"error", "error_description"}
    assert document["error"] == error, document
    assert response.headers["Cache-Control"] == "no-store"
    return str(document["error_description"])


@pytest.mark.parametrize("kid", ["rsa", "ec"])
def test_a_token_that_fits_a_rule_becomes_a_key(
    app: FastAPI,
    admin: Caller,
    nobody: Caller,
    issuer: Issuer,
    trusted: dict[str, Any],
    worker: FakeWorker,
    kid: str,
) -> None:
    response = exchange(nobody, issuer.token(kid))
    assert response.status_code == 200, response.text
    answer = response.json()
    assert answer["token_type"] == "Bearer"
    assert answer["issued_token_type"] == "urn:ietf:params:oauth:token-type:access_token"
    assert 290 < answer["expires_in"] <= 300  # never longer than the token
    assert response.headers["Cache-Control"] == "no-store"
    job = Caller(app, answer["access_token"]).create()
    assert job["created_by"] == {"subject": "repo:octo/app:ref:refs/heads/main"}
    assert Caller(app, answer["access_token"]).get(f"/v1/jobs/{job['id']}").status_code == 200
    created, issued, _ = admin.get("/v1/audit").json()["items"]
    for row, what, of in ((issued, "token.issue", trusted["id"]), (created, "job.create", job["id"])):
        assert (row["action"], row["object"], row["actor"]) == (what, of, job["created_by"])


def test_a_key_lives_an_hour_at_most(nobody: Caller, issuer: Issuer, trusted: dict[str, Any]) -> None:
    answer = exchange(nobody, issuer.token(exp=int(time.time()) + 86_400)).json()
    assert answer["expires_in"] == 3600


def test_a_key_ends_with_its_time(
    app: FastAPI, nobody: Caller, issuer: Issuer, trusted: dict[str, Any]
) -> None:
    answer = exchange(nobody, issuer.token(exp=int(time.time()) + 2)).json()
    assert answer["expires_in"] <= 2
    user = Caller(app, answer["access_token"])
    deadline = time.monotonic() + 10
    while user.get("/v1/jobs").status_code != 401:
        assert time.monotonic() < deadline
        time.sleep(0.3)


def test_fewer_scopes_may_be_asked_for_and_not_more(
    app: FastAPI, admin: Caller, nobody: Caller, issuer: Issuer
) -> None:
    admin.post("/v1/trust", json=rule(issuer, scopes=["jobs:read"]))
    key = exchange(nobody, issuer.token(), scope="jobs:read").json()["access_token"]
    assert Caller(app, key).get("/v1/jobs").status_code == 200
    assert Caller(app, key).post("/v1/jobs", json={}).status_code == 403
    refused(exchange(nobody, issuer.token(), scope="jobs:read admin"), "invalid_scope")


def test_deleting_a_rule_ends_its_keys(
    app: FastAPI, admin: Caller, nobody: Caller, issuer: Issuer, trusted: dict[str, Any], services: Services
) -> None:
    key = exchange(nobody, issuer.token()).json()["access_token"]
    user = Caller(app, key)
    assert user.get("/v1/jobs").status_code == 200
    services.repository.delete_trust(trusted["id"])  # as another process of the API would do it
    time.sleep(2.0)
    assert user.get("/v1/jobs").status_code == 401
    refused(exchange(nobody, issuer.token()))
    assert admin.delete(f"/v1/trust/{trusted['id']}").status_code == 404


def test_the_issuer_may_rotate_its_keys(nobody: Caller, issuer: Issuer, trusted: dict[str, Any]) -> None:
    before = issuer.token()
    assert exchange(nobody, before).status_code == 200
    asked = len(issuer.asked)
    assert exchange(nobody, issuer.token("ec")).status_code == 200
    assert len(issuer.asked) == asked  # keys are kept
    issuer.keys = {"new": RSAKey.generate_key(2048)}
    assert exchange(nobody, issuer.token("new")).status_code == 200
    refused(exchange(nobody, before))  # its key is gone


def test_only_so_many_unknown_keys_make_the_issuer_be_asked(
    nobody: Caller, issuer: Issuer, trusted: dict[str, Any]
) -> None:
    for number in range(100):
        issuer.keys[f"k{number}"] = issuer.keys["rsa"]
        token = issuer.token(f"k{number}")
        del issuer.keys[f"k{number}"]
        last = exchange(nobody, token)
        if last.status_code == 503:
            break
    assert (last.status_code, last.json()["error"]) == (503, "temporarily_unavailable")
    assert len(issuer.asked) == 2 * number
    assert exchange(nobody, issuer.token()).status_code == 200  # the known keys still work


def by_hand(issuer: Issuer, algorithm: str, secret: bytes | None = None) -> str:
    """A token as no library would make one: unsigned, or by HMAC with whatever is taken for a secret."""

    def part(raw: bytes) -> bytes:
        return base64.urlsafe_b64encode(raw).rstrip(b"=")

    header = {"alg": algorithm, "kid": "rsa", "typ": "JWT"}
    said = part(json.dumps(header).encode()) + b"." + part(json.dumps(issuer.claims()).encode())
    signature = b"" if secret is None else hmac.digest(secret, said, "sha256")
    return (said + b"." + part(signature)).decode()


FORGERIES: dict[str, Callable[[Issuer], str]] = {
    "alg none": lambda issuer: by_hand(issuer, "none"),
    "alg nOnE": lambda issuer: by_hand(issuer, "nOnE"),
    "RS256 without a signature": lambda issuer: by_hand(issuer, "RS256"),
    "HMAC with the public key": lambda issuer: by_hand(
        issuer, "HS256", issuer.keys["rsa"].as_pem(private=False)
    ),
    "HMAC with the public key, said to be RS256": lambda issuer: by_hand(
        issuer, "RS256", issuer.keys["rsa"].as_pem(private=False)
    ),
    "another key of the same id": lambda issuer: jwt.encode(
        {"alg": "RS256", "kid": "rsa"}, issuer.claims(), RSAKey.generate_key(2048)
    ),
    "the other kind of key": lambda issuer: jwt.encode(
        {"alg": "ES256", "kid": "rsa"}, issuer.claims(), ECKey.generate_key("P-256")
    ),
    "a key in the header": lambda issuer: jwt.encode(
        {"alg": "RS256", "kid": "own", "jwk": RSAKey.generate_key(2048).as_dict(private=False)},
        issuer.claims(),
        RSAKey.generate_key(2048),
    ),
    "RS512": lambda issuer: jwt.encode(
        {"alg": "RS512", "kid": "rsa"}, issuer.claims(), issuer.keys["rsa"], algorithms=["RS512"]
    ),
    "an altered claim": lambda issuer: (
        issuer.token(repository_id="1").split(".")[0]
        + "."
        + issuer.token().split(".")[1]
        + "."
        + issuer.token(repository_id="1").split(".")[2]
    ),
    "another audience": lambda issuer: issuer.token(aud="https://elsewhere.example.org"),
    "no audience": lambda issuer: issuer.token(aud=None),
    "expired": lambda issuer: issuer.token(exp=int(time.time()) - 1),
    "no end": lambda issuer: issuer.token(exp=None),
    "an end that is no number": lambda issuer: issuer.token(exp="9999999999"),
    "not valid yet": lambda issuer: issuer.token(nbf=int(time.time()) + 600),
    "another repository": lambda issuer: issuer.token(repository_id="4243"),
    "a longer number that begins alike": lambda issuer: issuer.token(repository_id="42421"),
    "no repository": lambda issuer: issuer.token(repository_id=None),
    "a list of repositories": lambda issuer: issuer.token(repository_id=["4242", "1"]),
    "another branch": lambda issuer: issuer.token(ref="refs/heads/feature"),
    "pull_request_target": lambda issuer: issuer.token(event_name="pull_request_target"),
    "a workflow of that name": lambda issuer: issuer.token(workflow="pull_request_target"),
    "another issuer": lambda issuer: issuer.token(iss="https://token.actions.githubusercontent.com"),
    "an issuer within": lambda issuer: issuer.token(iss=issuer.url + "/"),
    "no JWT": lambda issuer: "nonsense",
    "an API key": lambda issuer: "ofk_" + "a" * 43,
}


@pytest.mark.parametrize("forge", FORGERIES.values(), ids=FORGERIES.keys())
def test_it_is_refused(
    nobody: Caller, issuer: Issuer, trusted: dict[str, Any], forge: Callable[[Issuer], str]
) -> None:
    refused(exchange(nobody, forge(issuer)))


def test_pull_request_target_is_let_in_where_the_rule_names_it(
    admin: Caller, nobody: Caller, issuer: Issuer
) -> None:
    claims = {"repository_id": 4242, "event_name": ["push", "pull_request_target"]}
    assert admin.post("/v1/trust", json=rule(issuer, claims=claims)).status_code == 201
    assert exchange(nobody, issuer.token(event_name="pull_request_target")).status_code == 200
    refused(exchange(nobody, issuer.token(event_name="pull_request")))


DISCOVERY = "/.well-known/openid-configuration"


def discovered(issuer: str, keys: str) -> bytes:
    return json.dumps({"issuer": issuer, "jwks_uri": keys}).encode()


PUBLISHED: dict[str, tuple[str, int, dict[str, str], bytes]] = {
    "JWKS by redirect": ("/jwks", 302, {"Location": "/elsewhere"}, b""),
    "discovery by redirect": (DISCOVERY, 301, {"Location": "/elsewhere"}, b""),
    "a page instead of JWKS": ("/jwks", 200, {}, b"<html>"),
    "a secret key in the JWKS": (
        "/jwks",
        200,
        {},
        b'{"keys": [{"kty": "oct", "k": "c2VjcmV0", "kid": "rsa"}]}',
    ),
    "a JWKS of two megabytes": ("/jwks", 200, {}, b'{"keys": "' + b"x" * 2_000_000 + b'"}'),
    "no JWKS": ("/jwks", 404, {}, b""),
    "another issuer's discovery": (
        DISCOVERY,
        200,
        {},
        discovered("https://other.example.org", "https://other.example.org/"),
    ),
    "JWKS at the metadata address": (
        DISCOVERY,
        200,
        {},
        discovered("URL", "http://169.254.169.254/latest"),
    ),
    "JWKS at a private address": (DISCOVERY, 200, {}, discovered("URL", "http://10.0.0.1/")),
    "JWKS in a file": (DISCOVERY, 200, {}, discovered("URL", "file:///etc/passwd")),
    "JWKS nowhere": (DISCOVERY, 200, {}, b'{"issuer": "URL"}'),
}


@pytest.mark.parametrize(("path", "status", "headers", "body"), PUBLISHED.values(), ids=PUBLISHED.keys())
def test_what_an_issuer_must_not_publish_is_refused(
    nobody: Caller,
    issuer: Issuer,
    trusted: dict[str, Any],
    path: str,
    status: int,
    headers: dict[str, str],
    body: bytes,
) -> None:
    issuer.routes[path] = (status, headers, body.replace(b"URL", issuer.url.encode()))
    issuer.routes["/elsewhere"] = issuer.answer("/jwks") if path != "/jwks" else (200, {}, b"{}")
    description = refused(exchange(nobody, issuer.token()))
    assert "127.0.0.1" not in description
    assert "/elsewhere" not in issuer.asked


def test_an_issuer_that_is_away_is_asked_again_later(
    nobody: Caller, issuer: Issuer, trusted: dict[str, Any]
) -> None:
    issuer.routes["/jwks"] = (500, {}, b"")
    away = exchange(nobody, issuer.token())
    assert (away.status_code, away.json()["error"]) == (503, "temporarily_unavailable")
    assert away.headers["Retry-After"]
    del issuer.routes["/jwks"]
    assert exchange(nobody, issuer.token()).status_code == 200


def test_nobody_makes_the_service_call_an_issuer_that_no_rule_names(nobody: Caller, issuer: Issuer) -> None:
    refused(exchange(nobody, issuer.token()))
    assert issuer.asked == []


@pytest.mark.parametrize(
    ("form", "error"),
    [
        ({**FORM, "subject_token": "x" * 20_000}, "invalid_request"),
        ({**FORM, "subject_token": "x", "actor_token": "y"}, "invalid_request"),
        ({**FORM, "subject_token": "x", "resource": "y"}, "invalid_target"),
        ({}, "invalid_request"),
        ({"grant_type": "client_credentials"}, "unsupported_grant_type"),
        ({"grant_type": GRANT, "subject_token": "x"}, "invalid_request"),
        (FORM, "invalid_request"),
        ({"grant_type": GRANT, "subject_token_type": JWT, "subject_token": "x" * 20_000}, "invalid_request"),
    ],
)
def test_faulty_forms_are_refused_as_oauth_says(nobody: Caller, form: dict[str, str], error: str) -> None:
    refused(nobody.post("/v1/token", data=form), error)


def test_json_is_no_form_and_nothing_is_given_twice(nobody: Caller) -> None:
    refused(nobody.post("/v1/token", json={"grant_type": GRANT}), "invalid_request")
    kind = {"Content-Type": "application/x-www-form-urlencoded"}
    twice = f"grant_type={GRANT}&grant_type={GRANT}"
    refused(nobody.post("/v1/token", content=twice, headers=kind), "invalid_request")
    refused(nobody.post("/v1/token", content=b"\xff\xfe=%", headers=kind), "invalid_request")


GITHUB = "https://token.actions.githubusercontent.com"


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"issuer": GITHUB, "claims": {"repository": "octo/app"}}, ["body", "claims", "repository_id"]),
        ({"issuer": GITHUB, "claims": {"repository_id": "octo/app"}}, ["body", "claims", "repository_id"]),
        ({"issuer": GITHUB, "claims": {"repository_id": ["1", "x"]}}, ["body", "claims", "repository_id"]),
        ({"issuer": GITHUB, "claims": {"repository_id": True}}, ["body", "claims", "repository_id"]),
        ({"issuer": GITHUB + "/octo", "claims": {"sub": "x"}}, ["body", "claims", "repository_id"]),
        (
            {"issuer": "https://ghes.example.org/_services/token", "claims": {"sub": "x"}},
            ["body", "claims", "repository_id"],
        ),
        ({"claims": {}}, ["body", "claims"]),
        ({"issuer": "http://gitlab.com"}, ["body", "issuer"]),
        ({"issuer": "https://gitlab.com/"}, ["body", "issuer"]),
        ({"issuer": "https://gitlab.com?x=1"}, ["body", "issuer"]),
        ({"issuer": "https://10.0.0.1"}, ["body", "issuer"]),
        ({"issuer": "https://[::ffff:127.0.0.1]"}, ["body", "issuer"]),
        ({"scopes": ["admin"]}, ["body", "scopes", 0]),
        ({"claims": {"a": []}}, None),
        ({"claims": {"a": {"b": 1}}}, None),
        ({"claims": {"a": None}}, None),
        ({"audience": None}, ["body", "audience"]),
        ({"colour": "red"}, ["body", "colour"]),
    ],
)
def test_rules_that_let_in_too_much_are_refused(
    admin: Caller, issuer: Issuer, changes: dict[str, Any], place: list[str] | None
) -> None:
    response = admin.post("/v1/trust", json=rule(issuer, **changes))
    assert response.status_code == 422, response.text
    if place is not None:
        assert place in [error["loc"] for error in response.json()["errors"]], response.text
    assert admin.get("/v1/trust").json()["items"] == []


def test_rules_are_listed_and_for_admin_alone(
    admin: Caller, caller: Caller, issuer: Issuer, trusted: dict[str, Any]
) -> None:
    assert admin.get("/v1/trust").json()["items"] == [trusted]
    assert trusted["claims"]["ref"] == ["refs/heads/main", "refs/heads/next"]
    for method, path in [("GET", ""), ("POST", ""), ("DELETE", f"/{trusted['id']}")]:
        assert caller.request(method, f"/v1/trust{path}", json={}).status_code == 403
    assert admin.delete(f"/v1/trust/{trusted['id']}").status_code == 204
    assert admin.get("/v1/trust").json()["items"] == []


def test_issued_keys_do_not_stand_among_the_keys(
    admin: Caller, nobody: Caller, issuer: Issuer, trusted: dict[str, Any], services: Services
) -> None:
    before = admin.get("/v1/keys").json()
    exchange(nobody, issuer.token(exp=int(time.time()) + 4))
    assert admin.get("/v1/keys").json() == before
    assert services.repository.purge_tokens() == 0
    time.sleep(4.1)
    assert services.repository.purge_tokens() == 1
