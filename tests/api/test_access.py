"""Who may do what: default deny, scopes, tenants, keys, and the limits on calling."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.routing import BaseRoute

from api.context import Services
from tests.api.conftest import Caller, FakeWorker, prune

PUBLIC = {
    ("GET", "/livez"),
    ("GET", "/readyz"),
    ("POST", "/v1/token"),  # the CI system's token is the permission
    ("GET", "/v1/download/{token}/{name}"),  # the signature is the permission
    ("HEAD", "/v1/download/{token}/{name}"),
    ("GET", "/"),  # the log-in form
    ("GET", "/jobs/{job_id}"),
    ("POST", "/ui/login"),
    ("POST", "/ui/logout"),
}


def operations(routes: list[BaseRoute]) -> Iterator[tuple[str, str]]:
    """Every (method, path) of the app, found by walking its routes, not by a list kept by hand."""
    for route in routes:
        inner = getattr(route, "routes", None) or getattr(
            getattr(route, "original_router", None), "routes", None
        )
        if isinstance(route, APIRoute) or hasattr(route, "methods"):
            for method in sorted(getattr(route, "methods", None) or ()):
                yield method, str(getattr(route, "path", ""))
        elif inner:
            yield from operations(list(inner))


def all_operations(app: FastAPI) -> list[tuple[str, str]]:
    found = sorted(set(operations(list(app.routes))))
    assert len(found) > 30, found
    return found


def filled(path: str, **ids: str) -> str:
    return re.sub(r"\{(\w+)(:path)?\}", lambda match: ids.get(match[1], "x"), path)


def test_without_a_key_everything_but_the_public_paths_is_closed(app: FastAPI, nobody: Caller) -> None:
    for method, path in all_operations(app):
        response = nobody.request(method, filled(path), follow_redirects=False)
        if (method, path) in PUBLIC:
            refused = {500} if path == "/ui/login" else {401, 500}  # no key in the form is a wrong key
            assert response.status_code not in refused, (method, path, response.status_code)
        else:
            assert response.status_code == 401, (method, path, response.status_code)
            assert response.headers["WWW-Authenticate"].startswith("Bearer"), (method, path)


def test_the_public_paths_exist(app: FastAPI) -> None:
    assert set(all_operations(app)) >= PUBLIC


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer",
        "Bearer ",
        "Basic b2ZrXw==",
        "Bearer ofk_",
        "Bearer nonsense",
        "Bearer ofk_" + "a" * 43,
        "ofk_" + "a" * 43,
    ],
)
def test_what_is_not_a_key_opens_nothing(nobody: Caller, header: str) -> None:
    response = nobody.get("/v1/jobs", headers={"Authorization": header})
    assert (response.status_code, response.json()["code"]) == (401, "unauthorized")
    assert "WWW-Authenticate" in response.headers


def test_names_of_resources_that_look_public_are_not(nobody: Caller) -> None:
    for suffix in ("health", "ready", "metrics", "livez", "readyz"):
        for path in (
            f"/v1/jobs/{suffix}",
            f"/v1/jobs/x/{suffix}",
            f"/v1/keys/{suffix}",
            f"/v1/webhooks/{suffix}",
        ):
            assert nobody.get(path).status_code in (401, 404, 405), path
            assert nobody.delete(path).status_code in (401, 404, 405), path


class TestScopes:
    def test_a_reader_may_not_write(self, reader: Caller, caller: Caller, worker: FakeWorker) -> None:
        job = caller.create()
        for method, path in [
            ("POST", "/v1/jobs"),
            ("POST", "/v1/jobs:validate"),
            ("POST", f"/v1/jobs/{job['id']}/cancel"),
            ("POST", f"/v1/jobs/{job['id']}/retry"),
            ("DELETE", f"/v1/jobs/{job['id']}"),
            ("POST", "/v1/webhooks"),
        ]:
            response = reader.request(method, path, json=prune())
            assert (response.status_code, response.json()["code"]) == (403, "scope_missing"), path
            assert 'scope="jobs:write"' in response.headers["WWW-Authenticate"]
        assert reader.get(f"/v1/jobs/{job['id']}").status_code == 200

    def test_a_writer_may_not_read(
        self, app: FastAPI, make_key: Callable[..., str], worker: FakeWorker
    ) -> None:
        writer = Caller(app, make_key("acme", "jobs:write"))
        assert writer.post("/v1/jobs", json=prune()).status_code == 202
        assert writer.get("/v1/jobs").status_code == 403

    def test_keys_are_for_admin(self, caller: Caller) -> None:
        for method, path in [
            ("GET", "/v1/keys"),
            ("POST", "/v1/keys"),
            ("DELETE", "/v1/keys/x"),
            ("GET", "/v1/tenants"),
            ("PATCH", "/v1/tenants/acme"),
        ]:
            assert caller.request(method, path, json={}).status_code == 403

    def test_admin_sees_every_tenant(self, admin: Caller, caller: Caller, worker: FakeWorker) -> None:
        job = caller.create()
        assert admin.get(f"/v1/jobs/{job['id']}").status_code == 200
        assert [item["id"] for item in admin.get("/v1/jobs").json()["items"]] == [job["id"]]


class TestTenants:
    """That no id of one opens anything to another is in test_closed."""

    def test_a_cursor_or_label_of_another_tenant_shows_nothing(
        self, caller: Caller, stranger: Caller, worker: FakeWorker
    ) -> None:
        ids = [caller.create(labels={"team": "nlp"})["id"] for _ in range(3)]
        assert stranger.get(f"/v1/jobs?cursor={ids[-1]}").json()["items"] == []
        assert stranger.get("/v1/jobs?label.team=nlp").json()["items"] == []


class TestKeys:
    def test_a_new_tenant_comes_with_its_first_key(
        self, app: FastAPI, admin: Caller, worker: FakeWorker
    ) -> None:
        response = admin.post("/v1/keys", json={"tenant": "fresh", "scopes": ["jobs:read", "jobs:write"]})
        made = response.json()
        assert response.status_code == 201, response.text
        assert set(made) >= {"id", "key", "tenant", "scopes"}
        assert (made["tenant"], made["scopes"]) == ("fresh", ["jobs:read", "jobs:write"])
        assert made["key"].startswith("ofk_")
        assert Caller(app, made["key"]).post("/v1/jobs", json=prune()).status_code == 202

    def test_a_key_is_shown_once(self, admin: Caller, services: Services) -> None:
        made = admin.post("/v1/keys", json={"tenant": "fresh"}).json()
        listed = admin.get("/v1/keys").text
        assert made["id"] in listed
        assert made["key"] not in listed
        path = services.settings.database_url.removeprefix("sqlite:///")
        for suffix in ("", "-wal"):
            assert made["key"].encode() not in Path(path + suffix).read_bytes()

    def test_a_revoked_key_stops_at_once(self, app: FastAPI, admin: Caller) -> None:
        made = admin.post("/v1/keys", json={"tenant": "fresh"}).json()
        user = Caller(app, made["key"])
        assert user.get("/v1/jobs").status_code == 200
        assert admin.delete(f"/v1/keys/{made['id']}").status_code == 204
        assert user.get("/v1/jobs").status_code == 401
        assert admin.delete(f"/v1/keys/{made['id']}").status_code == 204
        assert admin.delete("/v1/keys/unknown").status_code == 404

    def test_an_expired_key_opens_nothing(self, app: FastAPI, admin: Caller) -> None:
        made = admin.post("/v1/keys", json={"tenant": "fresh", "expires_at": "2020-01-01T00:00:00Z"}).json()
        assert Caller(app, made["key"]).get("/v1/jobs").status_code == 401

    @pytest.mark.parametrize(
        "body",
        [
            {"tenant": "a b"},
            {"tenant": ""},
            {"tenant": "../x"},
            {"scopes": ["root"]},
            {"scopes": []},
            {"expires_at": "tomorrow"},
            {"expires_at": "9999-12-31T23:59:59-12:00"},
            {"expires_at": "0001-01-01T00:00:00+12:00"},
            {"colour": "red"},
            [],
        ],
    )
    def test_faulty_wishes_are_refused(self, admin: Caller, body: Any) -> None:
        before = admin.get("/v1/keys").json()["items"]
        assert admin.post("/v1/keys", json=body).status_code == 422
        assert admin.get("/v1/keys").json()["items"] == before

    def test_the_last_moment_of_all_can_be_listed(self, admin: Caller) -> None:
        end = {"tenant": "long", "expires_at": "9999-12-31T23:59:59.9999Z"}
        assert admin.post("/v1/keys", json=end).json()["expires_at"] == "9999-12-31T23:59:59.999Z"
        assert admin.get("/v1/keys").status_code == 200


class TestRates:
    def test_a_key_that_calls_too_often_is_slowed_down(
        self, make_app: Callable[..., FastAPI], make_key: Callable[..., str]
    ) -> None:
        app = make_app(requests_per_minute=3)
        caller, other = Caller(app, make_key()), Caller(app, make_key("acme"))
        answers = [caller.get("/v1/jobs") for _ in range(4)]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
        assert answers[0].headers["RateLimit"].startswith('"default";r=2')
        assert answers[3].json()["code"] == "rate_limited"
        assert int(answers[3].headers["Retry-After"]) > 0
        assert answers[3].headers["RateLimit-Policy"] == '"default";q=3;w=60'
        assert other.get("/v1/jobs").status_code == 200

    def test_guessing_keys_is_slowed_down(
        self, make_app: Callable[..., FastAPI], make_key: Callable[..., str]
    ) -> None:
        app = make_app(wrong_keys_per_minute=3)
        guesser = Caller(app, "ofk_" + "a" * 43)
        statuses = [guesser.get("/v1/jobs").status_code for _ in range(5)]
        assert statuses == [401, 401, 401, 429, 429]
        assert Caller(app, make_key()).get("/v1/jobs").status_code == 200  # from the same address
