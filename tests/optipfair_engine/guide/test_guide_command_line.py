"""Guide, "Command-Line Interface for Pruning" and "Model Analysis"."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from optipfair_engine import load_pruned
from optipfair_engine.cli.app import app


@pytest.fixture(autouse=True)
def in_a_scratch_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


WIDTHS = {
    0: [346] * 32,
    1: [308] * 32,
    2: [384] * 29,
    3: [384] * 24,
    4: [384] * 28,
    5: [308 if i in (0, 5, 10, 15, 20) else 384 for i in range(32)],
    6: [333 if i in (1, 3, 5, 7) else 384 for i in range(32)],
}
NAMES = [
    "basic",
    "advanced",
    "depth by number",
    "depth by percentage",
    "depth by indices",
    "selective",
    "expansion rate",
]


@pytest.mark.parametrize("number", range(7), ids=NAMES)
def test_guide_command_line(commands, tmp_path: Path, number: int) -> None:
    arguments = commands("Command-Line Interface for Pruning")
    assert len(arguments) == 7
    result = CliRunner().invoke(app, arguments[number])
    assert result.exit_code == 0, result.output
    model = load_pruned(tmp_path / "pruned-model")
    assert [layer.mlp.up_proj.out_features for layer in model.model.layers] == WIDTHS[number]
    metrics = json.loads((tmp_path / "pruned-model" / "metrics.json").read_text())
    # the second example asks for another number type: that takes a model in memory, the others are streamed
    assert metrics["reload_check"] == ("logits" if number == 1 else "structure")
    assert f"{metrics['pruned_parameters']:,}" in result.stdout


def test_guide_model_analysis(commands) -> None:
    (arguments,) = commands("Model Analysis")
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    for words in ("Total parameters", "Compatible with GLU pruning", "Parameter distribution", "384", "300"):
        assert words in result.stdout
