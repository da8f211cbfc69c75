"""The dashboard in a real browser: log in, follow a job live, see charts; nothing violates the policy."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI

from tests.api.conftest import Caller, FakeWorker
from tests.servers import free_port

pytestmark = pytest.mark.browser


@pytest.fixture
def served(make_app: Callable[..., FastAPI]) -> Iterator[tuple[FastAPI, str]]:
    """The app on a port."""
    app = make_app()
    port = free_port()
    config = uvicorn.Config(app, port=port, log_level="error", access_log=False, timeout_graceful_shutdown=2)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield app, f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(20)


@pytest.mark.parametrize("size", [(1280, 900), (390, 844)], ids=["desktop", "phone"])
def test_a_job_can_be_followed_to_its_results(
    chromium: Any, served: tuple[FastAPI, str], make_key: Callable[..., str], size: tuple[int, int]
) -> None:
    app, address = served
    worker = FakeWorker(app.state.services)
    worker.beat()
    caller = Caller(app, make_key())
    job = caller.create(gates=[{"metric": "perplexity_ratio", "max": 1.3}])
    page = chromium.new_page(viewport={"width": size[0], "height": size[1]})
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))

    page.goto(address)
    page.get_by_label("API key").fill(caller.key)
    page.get_by_role("button", name="Log in").click()
    page.get_by_role("link", name="prune tiny").click()
    page.locator(".hero-state .state", has_text="queued").wait_for()

    attempt = worker.claim(job["id"])
    worker.progress(job["id"], attempt, 0.42)
    page.locator(".bar-text", has_text="42 %").wait_for()  # nobody has reloaded the page
    worker.progress(job["id"], attempt, 0.77)
    page.locator(".bar-text", has_text="77 %").wait_for()
    worker.succeed(job["id"], attempt)
    page.get_by_text("verdict: pass", exact=True).wait_for()
    page.locator("[data-chart=compare] canvas").first.wait_for()
    page.locator("[data-chart=timeline] canvas").first.wait_for()
    page.get_by_role("link", name="model.safetensors").wait_for()

    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the page scrolls sideways"
    assert page.evaluate("document.cookie") == "", "a script can read the key"
    with page.expect_download() as download:
        page.get_by_role("link", name="config.json").click()
    assert download.value.suggested_filename == "config.json"
    assert complaints == []


def test_a_refresh_that_fails_leaves_the_table_and_a_revoked_key_leads_to_the_form(
    chromium: Any, served: tuple[FastAPI, str], make_key: Callable[..., str]
) -> None:
    app, address = served
    FakeWorker(app.state.services).beat()
    caller = Caller(app, make_key())
    caller.create()
    page = chromium.new_page()
    page.goto(address)
    page.get_by_label("API key").fill(caller.key)
    page.get_by_role("button", name="Log in").click()
    row = page.get_by_role("link", name="prune tiny")
    row.wait_for()

    answers = iter([503, 429])
    status = next(answers)
    problem = {"content_type": "application/problem+json", "body": '{"code": "x"}'}
    page.route(re.compile("/ui/jobs"), lambda route: route.fulfill(status=status, **problem))
    for text in ("no answer", "Too many requests"):
        page.locator("#notice", has_text=text).wait_for()
        assert row.is_visible()
        status = next(answers, 429)
    page.unroute_all()
    page.locator("#notice").wait_for(state="hidden")

    services = app.state.services
    for key in services.repository.list_keys("acme"):
        services.repository.revoke_key(key.id, None)
    page.get_by_label("API key").wait_for()
