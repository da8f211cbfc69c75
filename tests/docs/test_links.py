"""Every link of every page leads to a file that there is, and to a heading in it."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from urllib.parse import unquote

import pytest

from .blocks import PAGES, ROOT

_CODE = re.compile(r"^```.*?^```$|`[^`\n]*`", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\]\(([^)\s]+)\)|(?:src|href|srcset)=\"([^\"]+)\"")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


@cache
def anchors(page: Path) -> frozenset[str]:
    """The anchors of a page's headings, as code hosts and the site make them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    found: set[str] = set()
    for heading in _HEADING.findall(text):
        slug = re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
        number = 0
        while (name := slug if not number else f"{slug}-{number}") in found:
            number += 1
        found.add(name)
    return frozenset(found)


def faults(page: Path) -> list[str]:
    prose = _CODE.sub("", page.read_text(encoding="utf-8"))
    found = []
    for link in filter(None, (one or other for one, other in _LINK.findall(prose))):
        if link.startswith(("https://", "http://", "mailto:")):
            continue
        place, _, anchor = unquote(link).partition("#")
        target = (page.parent / place).resolve() if place else page
        if not target.exists():
            found.append(f"{link}: no such file")
        elif anchor and (target.suffix != ".md" or anchor not in anchors(target)):
            found.append(f"{link}: no such heading")
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    assert faults(page) == []


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# One heading\n\n[a](#one-heading) [b](#two) [c](gone.md)\n\n```\n[d](not-a-link.md)\n```\n"
    )
    assert faults(page) == ["#two: no such heading", "gone.md: no such file"]


def test_every_page_is_on_the_site_and_in_a_list() -> None:
    listed = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    for page in (ROOT / "docs").glob("*.md"):
        assert page.stem == "index" or f"\n{page.stem}\n" in listed, f"{page.name} is in no list of index.md"
    decisions = (ROOT / "docs" / "decisions" / "README.md").read_text(encoding="utf-8")
    for page in (ROOT / "docs" / "decisions").glob("0*.md"):
        assert f"({page.name})" in decisions


def test_each_measured_number_of_the_readme_is_in_the_page_that_it_names() -> None:
    section = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Beside others")[2]
    rows = [row for row in section.partition("What else there is")[0].splitlines() if "](docs/" in row]
    assert len(rows) >= 4
    for row in rows:
        *cells, link = row.strip("| ").split(" | ")
        page = (ROOT / link.partition("(")[2].partition("#")[0]).read_text(encoding="utf-8")
        for number in re.findall(r"\d+\.\d+|\d{3,}", " ".join(cells[1:])):
            assert re.search(rf"(?<![\d.]){re.escape(number)}(?![\d])", page), f"{number} isn't in {link}"
