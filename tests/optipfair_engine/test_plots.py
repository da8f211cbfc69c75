"""Plots are PNG files of the same bytes for the same numbers, drawn without pyplot's global state."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from optipfair_engine import figures

pytestmark = pytest.mark.usefixtures("drawn_plots")
CURVES = {0: [0.0, 0.02, 0.3, 1.0], 1: [0.0, 0.001, 0.01, 1.0]}
DRAWINGS = {
    "parameters": lambda: figures.draw_parameters(1000, 800),
    "kept": lambda: figures.draw_kept([8, 10], [10, 10], unit="query heads"),
    "importance": lambda: figures.draw_importance({0: 0.5, 1: float("nan"), 2: 0.1}, [2]),
    "layers": lambda: figures.draw_layers(4, (1, 3)),
    "comparison": lambda: figures.draw_comparison({"a": 1.0, "b": 2.0}, title="t", label="l"),
    "curves": lambda: figures.draw_curves(CURVES, {0: (0, 1), 1: (0,)}),
}
#: What each figure says it has found.
FINDINGS = {
    "parameters": "20.0 % fewer parameters",
    "kept": "Layer 1 keeps 100 % of its query heads, layer 0 80 %",
    "importance": "Layer 2 changes its input least (0.1), layer 0 most (0.5)",
    "layers": "2 of 4 layers removed: 1, 3",
    "comparison": "t",
    "curves": "This plan costs layer 0 most (0.02), layer 1 least (0.01)",
}


@pytest.mark.parametrize("name", DRAWINGS)
def test_the_same_numbers_give_the_same_png(tmp_path: Path, name: str) -> None:
    first, second = (figures.save(DRAWINGS[name](), tmp_path / f"{i}.png").read_bytes() for i in range(2))
    assert first == second
    assert first.startswith(b"\x89PNG\r\n\x1a\n")


@pytest.mark.parametrize("name", DRAWINGS)
def test_the_title_says_the_finding_and_axes_have_units(name: str) -> None:
    figure = DRAWINGS[name]()
    axes = figure.axes[0]
    assert figure.texts[0].get_text() == FINDINGS[name]
    assert axes.get_xlabel()
    assert axes.get_ylabel() or not len(axes.get_yticks()) or axes.get_yticklabels()[0].get_text()


def test_equal_layers_are_said_once() -> None:
    title = figures.draw_kept([8, 8], [10, 10], unit="neurons").texts[0].get_text()
    assert title == "Every layer keeps 80 % of its neurons"


def test_pyplot_is_never_imported(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from optipfair_engine import figures\n"
        f"figures.save(figures.draw_parameters(2, 1), Path({str(tmp_path / 'a.png')!r}))\n"
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


def test_the_dots_of_an_error_curve_lie_above_the_axis_however_small_they_are() -> None:
    curve = [0.0, 1e-4, 4e-4, 2e-3, 1.0]
    axes = figures.draw_curves({0: curve, 1: curve}, {0: [0, 1], 1: [0, 1, 2]}).axes[0]
    dots = [line.get_ydata()[0] for line in axes.lines if line.get_marker() == "o"]
    bottom, top = axes.get_ylim()
    assert axes.get_yscale() == "log"
    assert dots == [4e-4, 1e-4] and all(bottom < dot < top for dot in dots)
