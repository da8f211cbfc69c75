"""``make screenshots``: every page of the dashboard as pictures, light, dark and 390 pixels wide.

Without ``--url``, a service is started in a temporary folder and given a tiny model and some real jobs; with
it, the pages of a running service are taken, with what it has. The pictures go to ``--out``, as
``page-look.png``. Needs Chromium.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from demo.jobs import prune_job

MODEL = {"source": "local", "name": "tiny"}
TEXTS = {
    "texts": ["The quick brown fox jumps over the lazy dog. " * 20, "It was a bright cold day. " * 20],
    "max_length": 32,
}
JOBS: Sequence[dict[str, Any]] = (
    prune_job(
        MODEL["name"],
        25,
        {"preset": "recommended", "calibration": TEXTS, "evaluation": TEXTS},
        max_ratio=1.5,
        labels={"team": "nlp", "run": "nightly"},
    ),
    prune_job(MODEL["name"], 50, {"evaluation": TEXTS}, max_ratio=1.0, labels={"team": "nlp"}),
    {
        "kind": "importance",
        "spec": {"model": MODEL, "calibration": TEXTS},
        "labels": {"team": "nlp"},
    },
    {"kind": "bias", "spec": {"model": MODEL}, "labels": {"team": "fairness"}},
)
LOOKS: dict[str, dict[str, Any]] = {
    "light": {"color_scheme": "light", "viewport": {"width": 1280, "height": 900}},
    "dark": {"color_scheme": "dark", "viewport": {"width": 1280, "height": 900}},
    "phone": {"color_scheme": "light", "viewport": {"width": 390, "height": 844}},
}


def main() -> None:
    """Take the pictures."""
    parser = argparse.ArgumentParser(description="pictures of the dashboard")
    parser.add_argument("--url", help="of a running service; without it, one is started")
    parser.add_argument("--key-file", type=Path, help="a file with an admin key of that service")
    parser.add_argument("--out", type=Path, default=Path("screenshots"))
    given = parser.parse_args()
    if (given.url is None) != (given.key_file is None):
        parser.error("--url and --key-file go together")
    given.out.mkdir(parents=True, exist_ok=True)
    if given.url is not None:
        take(given.url, given.key_file.read_text().strip(), given.out)
        return
    with _own_service() as (url, key):
        take(url, key, given.out)


@contextmanager
def _own_service() -> Iterator[tuple[str, str]]:
    """A service with a tiny model whose jobs have ended."""
    from tests.service.harness import running
    from tests.tiny import write_tiny_llama

    folder = Path(tempfile.mkdtemp(prefix="screenshots-"))
    try:
        write_tiny_llama(folder / "data" / "models" / "tiny")
        with running(folder / "data") as service:
            for body in JOBS:
                service.wait_end(service.post_job(**body))
            yield service.url, (folder / "data" / "admin.key").read_text().strip()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def take(url: str, key: str, out: Path) -> None:
    """Every page in every look."""
    from playwright.sync_api import sync_playwright

    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        for look, options in LOOKS.items():
            page = browser.new_context(**options).new_page()
            page.goto(url)
            page.screenshot(path=out / f"login-{look}.png", full_page=True)
            page.get_by_label("API key").fill(key)
            page.get_by_role("button", name="Log in").click()
            page.get_by_role("button", name="Log out").wait_for()
            for name, path in pages(url, key).items():
                page.goto(url + path)
                page.wait_for_timeout(500)  # what comes by the stream
                page.screenshot(path=out / f"{name}-{look}.png", full_page=True)
        browser.close()
    print(json.dumps(sorted(path.name for path in out.glob("*.png")), indent=1))


def pages(url: str, key: str) -> dict[str, str]:
    """The address of each page by the name of its picture; of jobs, the newest success of each kind."""
    headers = {"Authorization": f"Bearer {key}"}
    answer = httpx.get(f"{url}/v1/jobs", params={"state": "succeeded"}, headers=headers, timeout=30)
    jobs = answer.raise_for_status().json()["items"]
    newest = {job["kind"]: f"/jobs/{job['id']}" for job in reversed(jobs)}
    prunes = [job["id"] for job in jobs if job["kind"] == "prune"][:2]
    found = {"jobs": "/", **{f"job-{kind}": path for kind, path in newest.items()}, "new": "/ui/new"}
    if len(prunes) == 2:
        found["compare"] = f"/ui/compare?id={prunes[1]}&id={prunes[0]}"
    return found | {name: f"/ui/{name}" for name in ("models", "system", "access")}


if __name__ == "__main__":
    main()
