"""A real browser for the tests that need one."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """Debian's Chromium, or whatever is on the path; one a module, because its event loop goes on."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("no Chromium on this machine")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=FLAGS)
        yield browser
        browser.close()


def watched_page(chromium: Any, address: str, complaints: list[str], **options: Any) -> Any:
    """A page of a fresh visitor; errors and requests to other hosts than `address` become complaints."""
    page = chromium.new_context(**options).new_page()

    def on_console(message: Any) -> None:
        if message.type == "error":
            complaints.append(message.text)

    def on_request(request: Any) -> None:
        if not request.url.startswith((address, "data:", "blob:")):
            complaints.append(f"request to {request.url}")

    page.on("console", on_console)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", on_request)
    return page


def log_in(page: Any, address: str, key: str) -> Any:
    """Fill in the log-in form."""
    page.goto(address)
    page.get_by_label("API key").fill(key)
    page.get_by_role("button", name="Log in").click()
    page.get_by_role("button", name="Log out").wait_for()
    return page


def downloaded_sha256(page: Any, name: str) -> tuple[str, str | None]:
    """Click a file of a job's page: the SHA-256 of what came, and the one that the page tells."""
    with page.expect_download() as download:
        page.get_by_role("link", name=name).click()
    told = page.locator("tr", has_text=name).locator("[data-sha256]").get_attribute("data-sha256")
    return hashlib.sha256(Path(download.value.path()).read_bytes()).hexdigest(), told
