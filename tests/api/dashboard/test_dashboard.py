"""The dashboard over HTTP: log-in, what its pages show, and what they refuse."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from fastapi import FastAPI

from api.dashboard import job as view, listing, timeline
from api.dashboard.session import COOKIE
from tests.api.conftest import FILES, FORM, Caller, FakeWorker


class TestLogIn:
    def test_the_key_stays_in_a_cookie_that_scripts_cannot_read(self, nobody: Caller, caller: Caller) -> None:
        response = nobody.post("/ui/login", content=f"key={caller.key}", headers=FORM, follow_redirects=False)
        cookie = response.headers["Set-Cookie"]
        assert response.headers["Location"] == "/"
        assert "HttpOnly" in cookie
        assert "SameSite=strict" in cookie
        assert caller.key not in nobody.get("/").text

    def test_over_https_the_cookie_stays_there(self, make_app: object, caller: Caller) -> None:
        app = make_app(public_url="https://prune.example.org")  # type: ignore[operator]
        response = Caller(app, None).post(
            "/ui/login", content=f"key={caller.key}", headers=FORM, follow_redirects=False
        )
        assert "Secure" in response.headers["Set-Cookie"]

    def test_a_wrong_key_is_said_without_showing_it(self, nobody: Caller) -> None:
        response = nobody.post("/ui/login", content="key=ofk_wrong", headers=FORM)
        assert response.status_code == 401
        assert 'role="alert"' in response.text
        assert "ofk_wrong" not in response.text
        assert COOKIE not in response.headers.get("Set-Cookie", "")

    def test_a_form_with_too_many_fields_is_no_crash(self, nobody: Caller) -> None:
        response = nobody.post("/ui/login", content="&".join(["key=x"] * 9), headers=FORM)
        assert response.status_code == 422
        assert "too many fields" in response.text

    def test_whoever_guesses_is_told_when_to_come_back(self, make_app: Callable[..., FastAPI]) -> None:
        visitor = Caller(make_app(wrong_keys_per_minute=1), None)
        answers = [visitor.post("/ui/login", content="key=ofk_wrong", headers=FORM) for _ in range(3)]
        assert answers[-1].status_code == 429
        assert int(answers[-1].headers["Retry-After"]) > 0
        assert answers[-1].headers["Content-Type"].startswith("text/html")

    @pytest.mark.parametrize(
        "target", ["https://evil.example", "//evil.example", "/\\evil", "javascript:alert(1)"]
    )
    def test_it_never_leads_elsewhere(self, nobody: Caller, caller: Caller, target: str) -> None:
        content = f"key={caller.key}&next={target}"
        response = nobody.post("/ui/login", content=content, headers=FORM, follow_redirects=False)
        assert response.headers["Location"] == "/"

    def test_the_api_takes_no_cookie(self, browser: Caller) -> None:
        assert browser.get("/").status_code == 200
        assert browser.get("/v1/jobs").status_code == 401

    def test_logging_out_forgets_the_key(self, browser: Caller) -> None:
        browser.post("/ui/logout")
        assert 'id="key"' in browser.get("/").text
        assert browser.get("/ui/jobs").status_code == 401

    def test_a_revoked_key_shows_the_form_again(self, app: FastAPI, admin: Caller) -> None:
        made = admin.post("/v1/keys", json={"tenant": "fresh"}).json()
        visitor = Caller(app, None)
        visitor.post("/ui/login", content=f"key={made['key']}", headers=FORM)
        assert 'id="key"' not in visitor.get("/").text
        admin.delete(f"/v1/keys/{made['id']}")
        assert 'id="key"' in visitor.get("/").text


@pytest.mark.parametrize(
    "path",
    [
        *("/", "/jobs/x", "/ui/jobs", "/ui/jobs/stream", "/ui/jobs/x/stream"),
        "/ui/jobs/x/artifacts/config.json",
    ],
)
def test_nothing_is_shown_without_a_key(
    nobody: Caller, caller: Caller, worker: FakeWorker, path: str
) -> None:
    job = caller.create(labels={"team": "hidden-label"})
    response = nobody.get(path.replace("x", job["id"]) if "/x" in path else path)
    assert response.status_code in (200, 401)
    assert "hidden-label" not in response.text
    assert "tiny" not in response.text


@pytest.mark.parametrize(
    "headers",
    [{"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"}, {"Origin": "https://evil.example"}],
)
def test_forms_of_other_sites_are_refused(
    browser: Caller, caller: Caller, worker: FakeWorker, headers: dict[str, str]
) -> None:
    job = caller.create()
    response = browser.post(f"/ui/jobs/{job['id']}/cancel", headers=headers)
    assert (response.status_code, response.json()["code"]) == (403, "cross_site")
    assert caller.get(f"/v1/jobs/{job['id']}").json()["state"] == "queued"


def test_pages_allow_only_their_own_scripts(browser: Caller, caller: Caller, worker: FakeWorker) -> None:
    job = caller.create()
    worker.run(job["id"])
    for path in ("/", f"/jobs/{job['id']}"):
        response = browser.get(path)
        policy = response.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'self'")
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        # what such a policy would block: inline scripts, handlers and styles
        assert not re.search(r"<script(?![^>]*\ssrc=)", response.text)
        assert not re.search(r"\son[a-z]+=|\sstyle=|<style", response.text)
        for address in re.findall(r'(?:src|href)="([^"]+)"', response.text):
            assert address.startswith(("/", "#")), address
            assert not address.startswith("//"), address
            if address.startswith("/static/"):
                assert browser.get(address).status_code == 200, address


def test_the_list_shows_the_tenants_jobs(
    browser: Caller, caller: Caller, stranger: Caller, worker: FakeWorker
) -> None:
    mine = caller.create(labels={"team": "nlp"})
    theirs = stranger.create()
    page = browser.get("/").text
    assert f'href="/jobs/{mine["id"]}"' in page
    assert "team: nlp" in page
    assert theirs["id"] not in page
    assert (
        "running" in browser.get("/ui/jobs?state=running").text
        or "No jobs match" in browser.get("/ui/jobs?state=running").text
    )
    assert mine["id"] in browser.get("/ui/jobs?state=queued&kind=prune").text
    assert mine["id"] in browser.get("/?state=nonsense&kind=nonsense&cursor=nonsense").text


def test_an_admin_sees_whose_job_it_is(
    app: FastAPI, admin: Caller, caller: Caller, worker: FakeWorker
) -> None:
    caller.create()
    visitor = Caller(app, None)
    visitor.post("/ui/login", content=f"key={admin.key}", headers=FORM)
    assert 'title="tenant">acme</span>' in visitor.get("/").text


def test_older_jobs_are_on_further_pages(
    browser: Caller, caller: Caller, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = caller.create()
    monkeypatch.setattr(listing, "PAGE", 2)
    for _ in range(2):
        caller.create()
    page = browser.get("/").text
    assert first["id"] not in page
    following = re.search(r'href="(/\?cursor=[^"]+)"', page)
    assert following
    assert first["id"] in browser.get(following[1]).text


def test_a_finished_job_shows_its_results(browser: Caller, caller: Caller, worker: FakeWorker) -> None:
    job = caller.create(gates=[{"metric": "perplexity_ratio", "max": 1.3}])
    worker.run(job["id"])
    page = browser.get(f"/jobs/{job['id']}").text
    for wanted in (
        "succeeded",
        "verdict: pass",
        "perplexity ratio",
        "1.2",
        "120,000",
        "plot.png",
        "model.safetensors",
    ):
        assert wanted in page, wanted
    assert "data-stream" not in page  # nothing more will come
    picture = browser.get(f"/ui/jobs/{job['id']}/artifacts/plot.png")
    assert picture.content == FILES["plot.png"]
    assert browser.get(f"/ui/jobs/{job['id']}/archive").headers["Content-Type"] == "application/x-tar"


def test_a_long_jobs_page_shows_its_latest_moments(
    browser: Caller, caller: Caller, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(view, "MAX_EVENTS", 6)
    monkeypatch.setattr(timeline, "SHOWN", 2)
    job = caller.create()
    attempt = worker.claim(job["id"])
    for step in range(9):
        worker.progress(job["id"], attempt, step / 10, stage=f"stage {step // 3}")
    page = browser.get(f"/jobs/{job['id']}").text
    # what belongs to one stage is one line, with the newest that it said
    assert re.findall(r'class="type">(stage \d)</span> <span class="muted wrap">1/2 · layer (\d)', page) == [
        ("stage 2", "8"),
        ("stage 1", "5"),
    ]


def test_a_failed_job_says_why_and_can_be_tried_again(
    browser: Caller, caller: Caller, worker: FakeWorker
) -> None:
    job = caller.create()
    worker.fail(job["id"])
    page = browser.get(f"/jobs/{job['id']}").text
    assert "non_finite_weights" in page
    assert f'action="/ui/jobs/{job["id"]}/retry"' in page
    response = browser.post(f"/ui/jobs/{job['id']}/retry", follow_redirects=False)
    assert (response.status_code, response.headers["Location"]) == (303, f"/jobs/{job['id']}")
    assert caller.get(f"/v1/jobs/{job['id']}").json()["state"] == "queued"
    assert browser.post(f"/ui/jobs/{job['id']}/explode").status_code == 404


def test_trying_again_beyond_the_quota_is_refused_on_the_page(
    make_app: Callable[..., FastAPI], caller: Caller, worker: FakeWorker
) -> None:
    app = make_app(max_jobs_per_tenant=1)
    failed = caller.create()
    worker.fail(failed["id"])
    caller.create()
    visitor = Caller(app, None)
    visitor.post("/ui/login", content=f"key={caller.key}", headers=FORM)
    response = visitor.post(f"/ui/jobs/{failed['id']}/retry")
    assert response.status_code == 429
    assert int(response.headers["Retry-After"]) > 0
    assert response.headers["Content-Type"].startswith("text/html")
    assert re.search(r'role="alert"><strong>Not done.</strong> [^<]*limit of jobs [^<]*1:', response.text)
    assert f'action="/ui/jobs/{failed["id"]}/retry"' in response.text


def test_the_stream_sends_the_body_and_then_says_that_it_ended(
    browser: Caller, caller: Caller, worker: FakeWorker
) -> None:
    job = caller.create()
    worker.run(job["id"])
    response = browser.get(f"/ui/jobs/{job['id']}/stream")
    assert response.headers["Content-Type"].startswith("text/event-stream")
    assert "event: content" in response.text
    assert 'data: <section class="card hero"' in response.text
    assert response.text.rstrip().endswith("event: ended\ndata: {}")


def test_a_reader_is_offered_nothing_to_change(
    app: FastAPI, caller: Caller, reader: Caller, worker: FakeWorker
) -> None:
    job = caller.create()
    visitor = Caller(app, None)
    visitor.post("/ui/login", content=f"key={reader.key}", headers=FORM)
    assert "/cancel" not in visitor.get(f"/jobs/{job['id']}").text
    assert visitor.post(f"/ui/jobs/{job['id']}/cancel").status_code == 403


def test_another_tenants_job_is_missing(browser: Caller, stranger: Caller, worker: FakeWorker) -> None:
    job = stranger.create()
    worker.run(job["id"])
    assert browser.get(f"/jobs/{job['id']}").status_code == 404
    for path in ("stream", "artifacts/config.json", "archive"):
        assert browser.get(f"/ui/jobs/{job['id']}/{path}").status_code == 404
    for action in ("cancel", "retry"):
        assert browser.post(f"/ui/jobs/{job['id']}/{action}").status_code == 404


def test_what_users_and_workers_write_is_text_not_markup(
    browser: Caller, caller: Caller, worker: FakeWorker
) -> None:
    job = caller.create(labels={"team": "<script>alert(1)</script>"})
    attempt = worker.claim(job["id"])
    worker.progress(job["id"], attempt, 0.5, stage="<img src=x onerror=alert(1)>")
    for path in ("/", f"/jobs/{job['id']}"):
        text = browser.get(path).text
        assert "<script>alert" not in text
        assert "<img src=x" not in text
