"""Closed to everyone else: every route without a key, without the scope, as another tenant."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from fastapi import FastAPI

from api.context import Services
from api.dashboard.session import COOKIE
from jobs.settings import Settings
from tests.api.conftest import FORM, Caller, FakeWorker, prune
from tests.api.issuer import Issuer
from tests.api.test_access import PUBLIC, all_operations, filled
from tests.api.test_tokens import exchange, rule
from tests.api.test_uploads import MODEL, declare, send

ADMIN = ("/v1/keys", "/v1/trust", "/v1/audit", "/v1/tenants")
ANY_KEY = {("GET", "/openapi.json")}
NO_API = ("/ui/", "/static")
READS_BY_POST = {("POST", "/v1/jobs/{job_id}/artifacts/{name}/links")}


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"allow_loopback_webhooks": True})


def scope_of(method: str, path: str) -> str | None:
    """What an operation needs: a scope, or (None) any key at all."""
    if path.startswith(ADMIN):
        return "admin"
    if (method, path) in ANY_KEY:
        return None
    reads = method in ("GET", "HEAD") or (method, path) in READS_BY_POST
    return "jobs:read" if reads else "jobs:write"


def closed_operations(app: FastAPI) -> list[tuple[str, str]]:
    return [
        (method, path)
        for method, path in all_operations(app)
        if (method, path) not in PUBLIC and not path.startswith(NO_API)
    ]


@pytest.mark.parametrize("key", [None, "ofk_" + "a" * 43], ids=["no key", "bad key"])
def test_without_a_good_key_every_route_is_closed(app: FastAPI, key: str | None) -> None:
    caller = Caller(app, key)
    for method, path in closed_operations(app):
        response = caller.request(method, filled(path), content=b"[" * 1000, follow_redirects=False)
        assert response.status_code == 401, (method, path, response.status_code)


def test_without_its_scope_every_route_is_closed(app: FastAPI, make_key: Callable[..., str]) -> None:
    callers = {scope: Caller(app, make_key("acme", scope)) for scope in ("jobs:read", "jobs:write")}
    tried = 0
    for method, path in closed_operations(app):
        needed = scope_of(method, path)
        for scope, caller in callers.items():
            response = caller.request(method, filled(path), content=b"[")
            if needed in (None, scope):
                assert response.status_code not in (401, 403), (method, path, scope, response.status_code)
            else:
                assert response.status_code == 403, (method, path, scope, response.status_code)
                tried += 1
    assert tried > 30


def pages(app: FastAPI) -> list[tuple[str, str]]:
    """Operations of the dashboard that need a log-in."""
    return [
        (method, path)
        for method, path in all_operations(app)
        if path.startswith("/ui/") and (method, path) not in PUBLIC
    ]


def logged_in(app: FastAPI, key: str) -> Caller:
    visitor = Caller(app, None)
    visitor.cookies.set(COOKIE, key)
    return visitor


def test_with_a_bad_key_in_the_cookie_every_page_is_closed(app: FastAPI) -> None:
    visitor = logged_in(app, "ofk_" + "a" * 43)
    for method, path in pages(app):
        response = visitor.request(method, filled(path), follow_redirects=False)
        assert response.status_code == 401, (method, path, response.status_code)


def test_without_its_scope_no_page_changes_anything(app: FastAPI, make_key: Callable[..., str]) -> None:
    reads, writes = logged_in(app, make_key("acme", "jobs:read")), logged_in(app, make_key("acme"))
    blind = logged_in(app, make_key("acme", "jobs:write"))  # a dashboard is for those who may read
    for method, path in pages(app):
        where = filled(path)
        assert blind.request(method, where).status_code == 401, (method, path)
        if method == "POST":
            assert reads.post(where).status_code == 403, path
        if path.startswith("/ui/access"):
            assert writes.request(method, where).status_code == 403, (method, path)


def test_no_id_of_one_tenant_opens_a_page_to_another(
    app: FastAPI, caller: Caller, stranger: Caller, worker: FakeWorker
) -> None:
    ids = everything_of(caller, worker)
    before = everything_seen(caller, ids)
    visitor = logged_in(app, stranger.key)
    tried = [("GET", "/jobs/{job_id}"), *(item for item in pages(app) if "{" in item[1])]
    expected = {path: 403 for _, path in tried if path.startswith("/ui/access")}
    expected["/ui/models/uploads/{upload_id}/delete"] = 303  # what is gone already is no error on a page
    for method, path in tried:
        for thing in sorted(set(ids.values())):
            same = dict.fromkeys(("job_id", "upload_id", "key_id", "rule_id"), thing)
            for name in ("cancel", "config.json") if "{action}" in path or "{name}" in path else ("-",):
                url = filled(path, **same, action=name, name=name)
                status = visitor.request(method, url, follow_redirects=False).status_code
                assert status == expected.get(path, 404), (method, url, status)
    bulk = f"action=cancel&id={ids['queued']}&id={ids['done']}"
    visitor.post("/ui/jobs/bulk", content=bulk, headers=FORM, follow_redirects=False)
    assert visitor.get(f"/ui/compare?id={ids['done']}&id={ids['queued']}").status_code == 404
    assert everything_seen(caller, ids) == before


def test_no_id_of_one_tenant_opens_anything_to_another(
    app: FastAPI,
    admin: Caller,
    caller: Caller,
    stranger: Caller,
    nobody: Caller,
    worker: FakeWorker,
    services: Services,
) -> None:
    issuer = Issuer()
    try:
        trusted = admin.post("/v1/trust", json=rule(issuer, tenant="other"))
        assert trusted.status_code == 201
        token = issuer.token(exp=int(time.time()) + 3600)  # the walk may take its time
        by_token = Caller(app, exchange(nobody, token).json()["access_token"])
    finally:
        issuer.close()
    ids = everything_of(caller, worker)
    before = everything_seen(caller, ids)
    names = ("config.json", "metrics.json", "a.txt", "*", "cancel", "retry")
    for method, path in closed_operations(app):
        if "{" not in path or path.startswith(ADMIN):
            continue
        for thing in sorted(set(ids.values())):
            for name in names if "{name}" in path else ("-",):
                ids_of_all = ("job_id", "other_id", "webhook_id", "delivery_id", "upload_id")
                same = dict.fromkeys(ids_of_all, thing)
                url = filled(path, **same, name=name, action=name)
                for other in (stranger, by_token):
                    response = other.request(method, url, content=b"x" if method == "PUT" else b"{}")
                    assert response.status_code == 404, (method, url, response.status_code)
    worker.beat()
    for other in (stranger, by_token):
        for reference in references(ids):
            refused = other.post("/v1/jobs", json=reference)
            assert refused.status_code == 422, refused.text
            assert refused.json()["code"] in ("model_not_found", "upload_not_found")
        assert other.get("/v1/jobs").json()["items"] == []
        assert other.get("/v1/webhooks").json()["items"] == []
        assert other.get(f"/v1/jobs?id_prefix={ids['done'][:8]}").json()["items"] == []
        for key in admin.get("/v1/keys").json()["items"]:
            assert other.delete(f"/v1/keys/{key['id']}").status_code == 403
        assert other.delete(f"/v1/trust/{trusted.json()['id']}").status_code == 403
    assert everything_seen(caller, ids) == before
    assert caller.get("/v1/jobs").status_code == 200  # its key, too, is as it was


def everything_of(caller: Caller, worker: FakeWorker) -> dict[str, str]:
    """Ids of one of each kind."""
    done, queued = caller.create(), caller.create()
    worker.run(done["id"])
    hook = caller.post("/v1/webhooks", json={"url": "https://example.org/hook"}).json()
    worker.run(caller.create()["id"])  # it is told of this one
    delivery = caller.get(f"/v1/webhooks/{hook['id']}/deliveries").json()["items"][0]
    return {
        "done": done["id"],
        "queued": queued["id"],
        "webhook": hook["id"],
        "delivery": delivery["id"],
        "upload": send(caller, MODEL),
        "open": declare(caller, {"a.txt": b"abc"}, "calibration"),
    }


def everything_seen(caller: Caller, ids: dict[str, str]) -> list[Any]:
    """What their owner sees of them."""
    paths = [f"/v1/jobs/{ids['done']}", f"/v1/jobs/{ids['queued']}", "/v1/webhooks"]
    paths += [f"/v1/uploads/{ids['upload']}", f"/v1/uploads/{ids['open']}"]
    paths += [f"/v1/webhooks/{ids['webhook']}/deliveries"]
    found = [caller.get(path) for path in paths]
    assert all(response.status_code == 200 for response in found)
    return [response.json() for response in found]


def references(ids: dict[str, str]) -> list[dict[str, Any]]:
    """Jobs that would use what belongs to the other."""
    upload = {"source": "upload", "id": ids["upload"]}
    text = {"source": "upload", "id": ids["open"]}
    return [
        prune(spec={"model": {"source": "job", "job_id": ids["done"]}}),
        prune(spec={"model": upload}),
        prune(spec={"plan": {"job_id": ids["done"]}}),
        {"kind": "evaluate", "spec": {"model": {"source": "local", "name": "tiny"}, "text": text}},
    ]
