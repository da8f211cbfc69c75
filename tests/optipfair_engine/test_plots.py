"""Plots are PNG files of the same bytes for the same numbers, drawn without pyplot's global state."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from optipfair_engine import figures

DRAWINGS = {
    "parameters": lambda path: figures.plot_parameters(path, 1000, 800),
    "kept": lambda path: figures.plot_kept(path, [8, 10], [10, 10], unit="query heads"),
    "importance": lambda path: figures.plot_importance(path, {0: 0.5, 1: float("nan"), 2: 0.1}, [2]),
    "layers": lambda path: figures.plot_layers(path, 4, (1, 3)),
    "comparison": lambda path: figures.plot_comparison(path, {"a": 1.0, "b": 2.0}, title="t", label="l"),
}


@pytest.mark.parametrize("name", DRAWINGS)
def test_the_same_numbers_give_the_same_png(tmp_path: Path, name: str) -> None:
    first, second = (DRAWINGS[name](tmp_path / f"{i}.png").read_bytes() for i in range(2))
    assert first == second
    assert first.startswith(b"\x89PNG\r\n\x1a\n")


def test_pyplot_is_never_imported(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from optipfair_engine import figures\n"
        f"figures.plot_parameters(Path({str(tmp_path / 'a.png')!r}), 2, 1)\n"
        "sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_colours_differ_in_lightness_too() -> None:
    """Readers without colour vision, and grey prints, must still tell bars apart."""

    def luminance(colour: str) -> float:
        red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    pairs = [(figures.GREY, figures.BLUE), (figures.BLUE, figures.ORANGE)]
    assert all(abs(luminance(a) - luminance(b)) > 0.15 for a, b in pairs)


def test_the_dots_of_an_error_curve_lie_above_the_axis_however_small_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []
    save = figures._save
    monkeypatch.setattr(
        figures, "_save", lambda path, draw, **size: save(path, lambda a: (draw(a), drawn.append(a)), **size)
    )
    curve = [0.0, 1e-4, 4e-4, 2e-3, 1.0]
    figures.plot_curves(tmp_path / "curves.png", {0: curve, 1: curve}, {0: [0, 1, 2], 1: [0, 1, 2, 3]})
    (axes,) = drawn
    dots = [line.get_ydata()[0] for line in axes.lines if line.get_marker() == "o"]
    bottom, top = axes.get_ylim()
    assert axes.get_yscale() == "log"
    assert dots == [4e-4, 1e-4] and all(bottom < dot < top for dot in dots)
