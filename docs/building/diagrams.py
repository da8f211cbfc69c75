"""``python -m docs.building.diagrams`` draws the pages' Mermaid diagrams as SVG, once for each source.

Where the pages' sources are read, their host draws them. The site has no script of others and is built
without a network, so its pictures are drawn beforehand, by mermaid from npm in Chromium, and lie in
``docs/pictures``.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

DOCS = Path(__file__).resolve().parents[1]
PICTURES = DOCS / "pictures" / "diagrams"
MERMAID = "mermaid@12.3.0"
_FENCE = re.compile(r"^```mermaid\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_DRAW = """async ([name, source]) => {
  mermaid.initialize({startOnLoad: false, theme: 'neutral', htmlLabels: false, flowchart: {htmlLabels: false},
                      fontFamily: 'system-ui, sans-serif', deterministicIds: true});
  return (await mermaid.render(name, source)).svg;
}"""


def picture_of(source: str) -> Path:
    """Where the picture of a diagram's source is, or would be."""
    digest = hashlib.sha256(source.strip().encode()).hexdigest()
    return PICTURES / f"{digest[:12]}.svg"


def sources() -> Iterator[str]:
    """Every diagram of every page."""
    for page in sorted(DOCS.rglob("*.md")):
        yield from _FENCE.findall(page.read_text(encoding="utf-8"))


def main() -> None:
    """Draw what is missing, and remove what no page has any more."""
    wanted = {picture_of(source): source.strip() for source in sources()}
    PICTURES.mkdir(parents=True, exist_ok=True)
    for old in set(PICTURES.glob("*.svg")) - wanted.keys():
        old.unlink()
    missing = {path: source for path, source in wanted.items() if not path.exists()}
    if missing:
        _draw(missing)
    print(f"{len(wanted)} diagrams, {len(missing)} drawn anew")


def _draw(missing: dict[Path, str]) -> None:
    from playwright.sync_api import sync_playwright

    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        page.add_script_tag(content=_script())
        for path, source in missing.items():
            svg = page.evaluate(_DRAW, [f"diagram-{path.stem}", source])
            path.write_text(svg + "\n", encoding="utf-8")
        browser.close()


def _script() -> str:
    """Mermaid's script from the npm registry: fetched for this, kept nowhere."""
    npm = shutil.which("npm")
    if npm is None:
        raise SystemExit("drawing diagrams needs npm (for mermaid) and Chromium")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        subprocess.run([npm, "pack", "--silent", MERMAID], cwd=folder, check=True, capture_output=True)
        with tarfile.open(next(folder.glob("*.tgz"))) as archive:
            archive.extractall(folder, filter="data")
        return (folder / "package" / "dist" / "mermaid.min.js").read_text(encoding="utf-8")


if __name__ == "__main__":
    main()
