"""The dashboard in a real browser: log in, follow a job live, see charts; nothing violates the policy."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from tests.api.dashboard.conftest import Site
from tests.api.dashboard.samples import GATES, finish

pytestmark = pytest.mark.browser


@pytest.mark.parametrize("size", [(1280, 900), (390, 844)], ids=["desktop", "phone"])
def test_a_job_can_be_followed_to_its_results(site: Site, size: tuple[int, int]) -> None:
    job = site.caller.create(gates=GATES)
    page = site.log_in(site.page(viewport={"width": size[0], "height": size[1]}))
    page.get_by_role("link", name="prune tiny").click()
    page.locator(".hero-state .state", has_text="queued").wait_for()

    attempt = site.worker.claim(job["id"])
    site.worker.progress(job["id"], attempt, 0.42)
    page.locator(".bar-text", has_text="42 %").wait_for()  # nobody has reloaded the page
    site.app.state.services.repository.put_log(job["id"], attempt, ["calibrated layer 3"], 0)
    page.get_by_text("Specification as it was sent").click()
    site.worker.progress(job["id"], attempt, 0.77)
    page.locator("#log", has_text="calibrated layer 3").wait_for()
    finish(site.worker, job, attempt)
    page.get_by_text("verdict: pass", exact=True).wait_for()
    page.get_by_role("img", name="Perplexity: 21.4 % higher").wait_for()
    assert page.locator("figure.chart").count() == 4
    page.get_by_text("With 16 % fewer neurons").wait_for()
    assert page.locator("details[open] pre").is_visible(), "an update has closed what the reader opened"

    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the page scrolls sideways"
    assert page.evaluate("document.cookie") == "", "a script can read the key"
    with page.expect_download() as download:
        page.get_by_role("link", name="model.safetensors").click()
    told = page.locator("tr", has_text="model.safetensors").locator("[data-sha256]")
    assert hashlib.sha256(Path(download.value.path()).read_bytes()).hexdigest() == told.get_attribute(
        "data-sha256"
    )
    assert site.complaints == []


def test_the_list_is_live_and_many_jobs_are_cancelled_and_retried_at_once(site: Site) -> None:
    page = site.log_in(site.page())
    page.get_by_role("heading", name="No jobs yet").wait_for()
    jobs = [site.caller.create(labels={"team": team}) for team in ("nlp", "nlp", "web")]
    page.get_by_role("row").nth(3).wait_for()  # nobody has reloaded the page

    page.get_by_role("link", name="team: nlp").first.click()
    page.wait_for_url("**/?label.team=nlp")
    page.get_by_label("Select all jobs").check()
    page.locator("#ticked", has_text="2 selected").wait_for()
    assert page.get_by_role("button", name="Try again").is_disabled()
    page.get_by_role("button", name="Cancel").click()
    page.locator(".state.s-cancelled").nth(1).wait_for()
    assert page.url.endswith("/?label.team=nlp")
    assert site.caller.get(f"/v1/jobs/{jobs[2]['id']}").json()["state"] == "queued"

    page.get_by_label("Select all jobs").check()
    page.get_by_role("button", name="Try again").click()
    page.locator("td .state.s-queued").nth(1).wait_for()
    attempt = site.worker.claim(jobs[0]["id"])
    page.get_by_label("Select prune").last.check()
    site.worker.progress(jobs[0]["id"], attempt, 0.5)
    page.get_by_text("50 % · prune").wait_for()
    assert page.get_by_label("Select prune").last.is_checked(), "an update has undone a tick"
    assert site.complaints == []


def test_a_job_is_built_by_the_form_and_another_cancelled(site: Site) -> None:
    page = site.log_in(site.page())
    page.get_by_role("link", name="New job").first.click()
    page.get_by_text("Memory at its peak").wait_for()
    page.get_by_label("How much: number").fill("35")
    page.locator("#command", has_text='"pruning_percentage": 35').wait_for()
    page.locator("#evaluation").select_option("typed:")
    page.get_by_label("Text that perplexity before and after is measured on, typed").fill("Some text.")
    page.get_by_label("Metric of gate 1").fill("perplexity_ratio")
    page.get_by_label("Greatest value of gate 1").fill("1.3")
    page.locator("#command", has_text='"max": 1.3').wait_for()
    page.get_by_role("radio", name="Bias").check()
    assert not page.get_by_label("How much: number").is_visible()
    page.get_by_role("radio", name="Prune").check()
    page.get_by_role("button", name="Start the job").click()
    page.locator(".hero-state .state", has_text="queued").wait_for()
    job = site.caller.get("/v1/jobs").json()["items"][0]
    assert (job["spec"]["pruning_percentage"], job["gates"][0]["max"]) == (35, 1.3)
    page.get_by_role("button", name="Cancel job").click()
    page.locator(".hero-state .state", has_text="cancelled").wait_for()
    page.get_by_role("button", name="Try again").wait_for()
    assert site.complaints == []


def test_a_wrong_key_is_refused_and_a_revoked_one_leads_to_the_form(site: Site) -> None:
    page = site.page()
    page.goto(site.address)
    page.get_by_label("API key").fill("ofk_wrong")
    page.get_by_role("button", name="Log in").click()
    page.get_by_role("alert").get_by_text("unknown, revoked or expired").wait_for()
    assert [text for text in site.complaints if "401" not in text] == []

    job = site.caller.create()
    site.log_in(page)
    page.get_by_role("link", name="prune tiny").click()
    page.locator(".hero-state .state", has_text="queued").wait_for()
    services = site.app.state.services
    for key in services.repository.list_keys("acme"):
        services.repository.revoke_key(key.id, None)
    services.authenticator.forget()
    services.repository.cancel_job(job["id"])  # news, which the page may no longer see
    page.get_by_label("API key").wait_for()
    assert "cancelled" not in page.content()


def test_a_stream_that_is_refused_leaves_what_is_shown(site: Site) -> None:
    site.caller.create()
    page = site.page()
    page.route("**/ui/jobs/stream*", lambda route: route.fulfill(status=503))
    answers = {"status": 503}
    page.route("**/ui/session", lambda route: route.fulfill(**answers))
    site.log_in(page)
    page.locator("#notice", has_text="no answer").wait_for()
    assert page.get_by_role("link", name="prune tiny").is_visible()
    answers["status"] = 429
    page.locator("#notice", has_text="Too many requests").wait_for()
    page.unroute_all()
    page.locator("#notice").wait_for(state="hidden")
