"""The report's page in a browser: it loads nothing, sorts its tables, and is whole without scripts too."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from optipfair_engine.bias.framing import asked_section, unsaid_section
from optipfair_engine.bias.html import page, table
from optipfair_engine.bias.results.result import BiasResult

ROWS = [("2 · 11", "1.20 (1.00 … 1.40)"), ("2 · 9", "−3,000"), ("10 · 1", "–"), ("0 · 4", "&lt;0.001")]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    sections = [f"<h2>Part {n}</h2>" for n in (1, 2, 3)]
    path = tmp_path / "report.html"
    path.write_text(
        page("A <title>", ["<p>First of all.</p>", *sections, table("", ("layer", "effect"), ROWS)])
    )
    return path


def test_a_contents_list_stands_before_the_first_section(file) -> None:
    text = file.read_text()
    assert re.findall(r'<li><a href="#(s\d)">(Part \d)</a>', text) == [
        (f"s{n}", f"Part {n}") for n in (1, 2, 3)
    ]
    assert text.index("First of all") < text.index("<nav") < text.index('<h2 id="s1">')
    assert "<nav" not in page("Short", ["<h2>One</h2>"])


def test_every_result_says_what_it_does_not_say() -> None:
    result = BiasResult("a model")
    assert "The model: a model." in "".join(asked_section(result))
    assert "what was not asked was not measured" in "".join(unsaid_section(result))


@pytest.mark.browser
def test_tables_sort_by_words_and_by_numbers_and_nothing_else_runs(file: Path, chromium: Any) -> None:
    tab = chromium.new_page()
    said: list[str] = []
    tab.on("console", lambda message: said.append(message.text))
    tab.goto(file.as_uri())
    first = tab.locator("tbody tr td:first-child")
    effect, layer = (tab.get_by_role("button", name=name) for name in ("effect", "layer"))
    effect.click()
    assert first.all_text_contents() == ["2 · 11", "0 · 4", "2 · 9", "10 · 1"]
    effect.click()
    assert first.all_text_contents() == ["10 · 1", "2 · 9", "0 · 4", "2 · 11"]
    assert tab.locator("th").nth(1).get_attribute("aria-sort") == "ascending"
    layer.click()
    assert first.all_text_contents() == ["10 · 1", "2 · 11", "2 · 9", "0 · 4"]
    assert said == []  # the page's own policy stopped nothing of it
    plain = chromium.new_context(java_script_enabled=False).new_page()
    plain.goto(file.as_uri())
    assert plain.locator("tbody tr").count() == 4
    assert plain.get_by_role("button").count() == 0
