"""The processes of docker-compose.yml by hand: its commands, environment, secrets and order, and one job."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.browser import downloaded_sha256, log_in, watched_page
from tests.deploy.composition import Composition, composed
from tests.service.harness import END_SECONDS
from tests.tiny import byte_tokenizer, tiny_model, write_checkpoint

pytestmark = [pytest.mark.server, pytest.mark.slow, pytest.mark.timeout(900)]
PARAGRAPH = "The quick brown fox jumps over the lazy dog. It was a bright cold day in April."
SCOPES = ("--scope", "admin", "--scope", "jobs:read", "--scope", "jobs:write")


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Composition]:
    home = tmp_path_factory.mktemp("compose")
    model = tiny_model("llama", vocab_size=300)
    write_checkpoint(home / "volumes" / "models" / "tiny", model, byte_tokenizer([PARAGRAPH]))
    with composed(home, "cpu") as made:
        yield made


@pytest.fixture(scope="module")
def key(started: Composition) -> str:
    """A key, made as the file's first lines say."""
    return started.run("migrate", "optipfair-service", "keys", "create", *SCOPES).split()[-1]


def test_everything_starts_in_the_files_order(started: Composition) -> None:
    order = started.order
    assert order.index("postgres") < order.index("migrate") < min(order.index("api"), order.index("worker"))
    assert {"redis", "s3"} < set(order[: order.index("api")])
    assert httpx.get(f"{started.url}/readyz", timeout=30).json()["status"] == "ready"


@pytest.mark.browser
def test_a_job_of_the_form_is_watched_to_its_end_and_its_files_are_whole(
    started: Composition,
    key: str,
    chromium: Any,
) -> None:
    complaints: list[str] = []
    page = watched_page(chromium, started.url, complaints)
    page.set_default_timeout(1000 * END_SECONDS)
    log_in(page, started.url, key)
    page.get_by_role("link", name="New job").first.click()
    for text in ("calibration", "evaluation"):
        page.locator(f"#{text}").select_option("typed:")
        page.locator(f"textarea[name={text}_typed]").fill(PARAGRAPH)
    page.get_by_label("Metric of gate 1").fill("perplexity_ratio")
    page.get_by_label("Greatest value of gate 1").fill("1000")
    page.locator("#command", has_text='"max": 1000').wait_for()
    page.get_by_text("Memory at its peak").wait_for()
    page.get_by_role("button", name="Start the job").click()
    ended = page.locator(".hero-state .state", has_text=re.compile("succeeded|failed"))
    ended.wait_for()  # nobody has reloaded the page
    assert ended.text_content() == "succeeded", started.say("worker")
    page.get_by_text("verdict: pass", exact=True).wait_for()
    page.get_by_role("img", name="Perplexity").first.wait_for()
    assert page.locator("figure.chart").count() >= 3
    came, told = downloaded_sha256(page, "model.safetensors")
    assert came == told
    assert complaints == []
    page.context.close()
