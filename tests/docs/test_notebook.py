"""The example notebook runs, with a tiny model, and its results show themselves."""

from __future__ import annotations

import re
from typing import Any

import pytest

from optipfair_engine.notebooks import MOST_ROWS, LayerScores, Result, table, words
from tests.tiny import byte_tokenizer, tiny_llama, write_checkpoint

nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
TEXT = "Structured pruning removes whole neurons, so that the smaller model is faster on any machine. "


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    from docs.building.notebook import executed

    folder = tmp_path_factory.mktemp("notebook")
    model = tiny_llama(vocab_size=300, num_hidden_layers=2, max_position_embeddings=256)
    write_checkpoint(folder / "model", model, byte_tokenizer([TEXT], vocab_size=300))
    return [cell for cell in executed(folder / "model", folder).cells if cell.cell_type == "code"]


def shown(cell: Any, kind: str) -> list[str]:
    return [output["data"][kind] for output in cell.outputs if kind in output.get("data", {})]


def test_results_are_tables(cells: list[Any]) -> None:
    tables = [found for cell in cells for found in shown(cell, "text/html")]
    names = ("importance", "percentage_reduction", "perplexity_ratio", "mean difference", "effect")
    assert len(tables) == len(names)
    assert all(name in found for name, found in zip(names, tables, strict=True))


def test_a_figure_is_shown_once_in_its_cell(cells: list[Any]) -> None:
    assert [len(shown(cell, "image/png")) for cell in cells] == [0, 0, 1, 0, 0, 0, 1, 0]


def test_long_calls_have_a_bar_for_each_stage(cells: list[Any]) -> None:
    said = "".join(
        output["text"] for cell in cells for output in cell.outputs if output.get("name") == "stderr"
    )
    assert "Calibrating" in said and "Pruning layers" in said


def test_words_of_others_are_text_in_a_table() -> None:
    html = Result({"name": "<b>x</b>", "warnings": ["<i>"], "inner": {"a": "</pre>"}})._repr_html_()
    assert "<b>x" not in html and "<i>" not in html and html.count("</pre>") == 1


def test_long_tables_are_cut_and_say_so() -> None:
    html = table(("n",), [(n,) for n in range(MOST_ROWS + 5)])
    assert html.count("<tr>") == MOST_ROWS + 2 and "and 5 more" in html


def test_scores_that_are_undefined_have_no_bar() -> None:
    html = LayerScores({0: 0.5, 1: float("nan"), 2: 0.25})._repr_html_()
    assert re.findall(r"width:(\d+\.\d+)em", html) == ["12.00", "0.00", "6.00"]
    assert html.count("least") == 1


@pytest.mark.parametrize(
    ("value", "said"),
    [(1234567, "1,234,567"), (0.123456, "0.1235"), (12345.67, "12,345.7"), (None, "–"), (True, "True")],
)
def test_numbers_are_read_easily(value: object, said: str) -> None:
    assert words(value) == said
