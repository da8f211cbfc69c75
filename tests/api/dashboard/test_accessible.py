"""Every page against axe-core, light and dark: no serious finding; on a phone nothing scrolls sideways."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
from collections.abc import Callable
from typing import Any

import pytest

from tests.api.dashboard.conftest import Site
from tests.api.dashboard.samples import GATES, finish

pytestmark = pytest.mark.browser
AXE = "axe-core@4.14.1"
RULES = {
    "light": "['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa']",
    "dark": "{type: 'rule', values: ['color-contrast']}",  # what else differs there
}
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


@pytest.fixture(scope="session")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The script of axe-core from the npm registry: fetched for these tests, kept nowhere."""
    npm, folder = shutil.which("npm"), tmp_path_factory.mktemp("axe")
    if npm is None:
        pytest.skip("no npm on this machine to fetch axe-core with")
    command = [npm, "pack", "--silent", "--fetch-retries=0", "--fetch-timeout=20000", AXE]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    except subprocess.TimeoutExpired:
        pytest.skip("the npm registry does not answer")
    packed = next(folder.glob("*.tgz"), None)
    if packed is None:
        pytest.skip(f"the npm registry gave no axe-core: {done.stderr.strip()[:200]}")
    with tarfile.open(packed) as archive:
        archive.extractall(folder, filter="data")
    return (folder / "package" / "axe.min.js").read_text(encoding="utf-8")


def test_every_page_is_accessible_and_fits(site: Site, axe: str, make_key: Callable[..., str]) -> None:
    admin = make_key("ops", "admin")
    paths = _pages(site)
    # the policy of the pages forbids scripts that are put in, as it should
    page = site.page(bypass_csp=True, reduced_motion="reduce")
    page.goto(site.address)
    found = _findings(page, axe, "log in")
    site.log_in(page, admin)
    for path in paths:
        page.goto(site.address + path)
        found += _findings(page, axe, path)
    assert found == []


def _pages(site: Site) -> list[str]:
    done = [site.caller.create(gates=GATES, labels={"team": "nlp"}) for _ in range(2)]
    for job in done:
        finish(site.worker, job, site.worker.claim(job["id"]))
    failed, running = site.caller.create(), site.caller.create()
    site.worker.fail(failed["id"])
    site.worker.progress(running["id"], site.worker.claim(running["id"]), 0.4)
    single = [f"/jobs/{job['id']}" for job in (done[0], failed, running)]
    both = f"/ui/compare?id={done[0]['id']}&id={done[1]['id']}"
    return ["/", *single, "/ui/new", both, "/ui/models", "/ui/system", "/ui/access", "/nonsense"]


def _findings(page: Any, axe: str, path: str) -> list[str]:
    found = []
    page.set_viewport_size(DESKTOP)
    page.evaluate("for (const details of document.querySelectorAll('details')) details.open = true")
    page.evaluate(axe)
    for look, rules in RULES.items():
        page.emulate_media(color_scheme=look)
        result = page.evaluate(f"() => axe.run(document, {{resultTypes: ['violations'], runOnly: {rules}}})")
        for finding in result["violations"]:
            if finding["impact"] in ("serious", "critical"):
                node = finding["nodes"][0]
                found.append(
                    f"{path}, {look}: {finding['id']}: {node['html'][:160]} {node['failureSummary']}"
                )
    page.emulate_media(color_scheme="light")
    page.set_viewport_size(PHONE)
    if not page.evaluate("document.documentElement.scrollWidth <= innerWidth"):
        found.append(f"{path}: scrolls sideways")
    return found
