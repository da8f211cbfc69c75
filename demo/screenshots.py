"""``make screenshots``: every page of the dashboard as pictures, light, dark and 390 pixels wide.

Without ``--url``, a service is started in a temporary folder and given the demo's model (``--tiny``: a random
one, in seconds) and real jobs: prunes that pass and fail their gates, layer importance, bias, and one that is
cancelled. With it, the pages of a running service are taken, with what it has. Pictures go to ``--out`` as
``page-look.png``, and the figures of the jobs to ``--out/figures``. Needs Chromium.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from demo.__main__ import ensure_model
from demo.topics import calibration_text, evaluation_text, excerpts

LOOKS: dict[str, dict[str, Any]] = {
    "light": {"color_scheme": "light", "viewport": {"width": 1280, "height": 900}},
    "dark": {"color_scheme": "dark", "viewport": {"width": 1280, "height": 900}},
    "phone": {"color_scheme": "light", "viewport": {"width": 390, "height": 844}},
}
#: Enough for the slowest job on a machine that does other things, too.
JOB_SECONDS = 1800
FIGURES = (".png", ".svg")


def main() -> None:
    """Take the pictures."""
    parser = argparse.ArgumentParser(description="pictures of the dashboard")
    parser.add_argument("--url", help="of a running service; without it, one is started")
    parser.add_argument("--key-file", type=Path, help="a file with an admin key of that service")
    parser.add_argument("--tiny", action="store_true", help="a random model instead of the demo's")
    parser.add_argument("--out", type=Path, default=Path("screenshots"))
    given = parser.parse_args()
    if (given.url is None) != (given.key_file is None):
        parser.error("--url and --key-file go together")
    given.out.mkdir(parents=True, exist_ok=True)
    if given.url is not None:
        take(given.url, given.key_file.read_text().strip(), given.out)
        return
    with _own_service(tiny=given.tiny) as (url, key):
        take(url, key, given.out)


def jobs(model: str, texts: int, characters: int) -> list[dict[str, Any]]:
    """What is asked of a model: each kind of job whose page has charts, and a gate that fails."""
    source = {"source": "local", "name": model}
    calibration = {"texts": excerpts(calibration_text(), texts, characters)}
    evaluation = {"texts": excerpts(evaluation_text(), max(2, texts // 5), characters)}
    calibrated = {
        "model": source,
        "preset": "recommended",
        "calibration": calibration,
        "evaluation": evaluation,
    }
    gate = {"metric": "perplexity_ratio", "max": 1.5}
    return [
        {
            "kind": "importance",
            "spec": {"model": source, "calibration": calibration},
            "labels": {"team": "nlp"},
        },
        {
            "kind": "prune",
            "spec": {"model": source, "pruning_percentage": 20, "evaluation": evaluation},
            "labels": {"team": "nlp", "run": "by-weights"},
            "gates": [gate],
        },
        {
            "kind": "prune",
            "spec": {**calibrated, "allocation": "allocated", "pruning_percentage": 20},
            "labels": {"team": "nlp", "run": "calibrated"},
            "gates": [gate, {"metric": "percentage_reduction", "min": 10}],
        },
        {"kind": "bias", "spec": {"model": source, "neuron_ranking": True}, "labels": {"team": "fairness"}},
    ]


@contextmanager
def _own_service(*, tiny: bool) -> Iterator[tuple[str, str]]:
    """A service whose jobs have ended."""
    from tests.service.harness import running
    from tests.tiny import write_tiny_llama

    folder = Path(tempfile.mkdtemp(prefix="screenshots-"))
    try:
        if tiny:
            model = write_tiny_llama(folder / "models" / "tiny")
            asked = jobs(model.name, texts=2, characters=600)
            for job in asked:
                for text in ("calibration", "evaluation"):
                    job["spec"].get(text, {}).update(max_length=32)
        else:
            model = ensure_model().resolve()
            asked = jobs(model.name, texts=24, characters=2_500)
        settings = {"OPTIPFAIR_MODELS_DIR": str(model.parent), "OPTIPFAIR_THREADS": "2"}
        with running(folder / "data", **settings, OPTIPFAIR_LEASE_SECONDS="45") as service:
            for body in asked:
                service.wait_end(service.post_job(**body), seconds=JOB_SECONDS)
            stopped = service.post_job("prune", {"model": asked[0]["spec"]["model"]}, labels={"team": "ops"})
            service.request("POST", f"/v1/jobs/{stopped}/cancel")
            yield service.url, (folder / "data" / "admin.key").read_text().strip()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def take(url: str, key: str, out: Path) -> None:
    """Every page in every look, and the jobs' figures."""
    from playwright.sync_api import sync_playwright

    found = pages(url, key)
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
            for name, path in found.items():
                page.goto(url + path)
                page.wait_for_timeout(500)  # what comes by the stream
                page.screenshot(path=out / f"{name}-{look}.png", full_page=True)
        browser.close()
    fetch_figures(url, key, found, out / "figures")
    print(json.dumps(sorted(str(path.relative_to(out)) for path in out.rglob("*.*")), indent=1))


def pages(url: str, key: str) -> dict[str, str]:
    """The address of each page by the name of its picture; of jobs, the newest success of each kind."""
    headers = {"Authorization": f"Bearer {key}"}
    answer = httpx.get(f"{url}/v1/jobs", params={"state": "succeeded"}, headers=headers, timeout=30)
    ended = answer.raise_for_status().json()["items"]
    newest = {job["kind"]: f"/jobs/{job['id']}" for job in reversed(ended)}
    prunes = [job["id"] for job in ended if job["kind"] == "prune"][:2]
    found = {"jobs": "/", **{f"job-{kind}": path for kind, path in newest.items()}, "new": "/ui/new"}
    found["jobs-none"] = "/?label.team=nobody"
    if len(prunes) == 2:
        found["compare"] = f"/ui/compare?id={prunes[1]}&id={prunes[0]}"
        found["job-prune-failed-gate"] = f"/jobs/{prunes[1]}"
    return found | {name: f"/ui/{name}" for name in ("models", "system", "access")}


def fetch_figures(url: str, key: str, found: Mapping[str, str], folder: Path) -> None:
    """The figures that the engine drew for the jobs of these pages."""
    folder.mkdir(exist_ok=True)
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=60) as client:
        for name, path in found.items():
            if not path.startswith("/jobs/"):
                continue
            job = path.removeprefix("/jobs/")
            for item in client.get(f"/v1/jobs/{job}/artifacts").raise_for_status().json():
                if item["name"].endswith(FIGURES):
                    data = client.get(f"/v1/jobs/{job}/artifacts/{item['name']}").raise_for_status().content
                    (folder / f"{name.removeprefix('job-')}-{item['name']}").write_bytes(data)


if __name__ == "__main__":
    main()
