from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from matplotlib.quiver import Quiver

from optipfair_engine.bias import (
    visualize_bias,
    visualize_heatmap,
    visualize_mean_differences,
    visualize_pca,
)
from optipfair_engine.bias.figures.kinds import BarData, Caption, Style
from optipfair_engine.bias.figures.writing import FigureError, FigureWriter
from optipfair_engine.errors import InvalidOptionError

#: What the published library writes at 300 dpi (width, height), measured.
PEER_PIXELS = {"mean_diff": (3029, 1808), "heatmap": (3029, 2402), "pca": (3569, 2993)}


def pixels(path: Path) -> tuple[int, int]:
    return struct.unpack(">II", path.read_bytes()[16:24])


def test_a_missing_layer_is_an_error_that_lists_what_there_is(llama, tokenizer, pairs) -> None:
    expected = r"Layer mlp_output_layer_o not found in activations; .*mlp_output_layer_0 … mlp_output_layer_3"
    for draw in (visualize_pca, visualize_heatmap, visualize_mean_differences):
        with pytest.raises(ValueError, match=expected):
            draw(llama, tokenizer, pairs[0], layer_key="mlp_output_layer_o")
    with pytest.raises(ValueError, match=r"No layers of type nothing.*gate_proj_layer_0"):
        visualize_mean_differences(llama, tokenizer, pairs[0], layer_type="nothing")


def test_no_layers_are_no_figure(llama, tokenizer, pairs, tmp_path) -> None:
    with pytest.raises(ValueError, match="layers has no position"):
        visualize_bias(llama, tokenizer, pairs, layers=[], output_dir=tmp_path)
    assert not list(tmp_path.iterdir())


def test_unknown_options_are_refused(llama, tokenizer, pairs) -> None:
    with pytest.raises(ValueError, match=r"Unknown visualization types \['bars'\]"):
        visualize_bias(llama, tokenizer, pairs, visualization_types="bars")
    with pytest.raises(TypeError, match="colour"):
        visualize_bias(llama, tokenizer, pairs, colour="red")
    with pytest.raises(InvalidOptionError, match="histogram"):
        visualize_bias(llama, tokenizer, pairs, visualization_types=["histogram"])
    with pytest.raises(InvalidOptionError, match="gif"):
        visualize_bias(llama, tokenizer, pairs, figure_format="gif")
    with pytest.raises(InvalidOptionError, match="all"):
        visualize_bias(llama, tokenizer, pairs, layers="some", visualization_types=["pca"])


@pytest.mark.slow
def test_all_figures_in_folders_that_did_not_exist(llama, tokenizer, pairs, tmp_path) -> None:
    folder = tmp_path / "new" / "figures"
    nothing, metrics = visualize_bias(
        llama,
        tokenizer,
        pairs[:2],
        output_dir=folder,
        layers=[1],
        layer_types=["mlp_output"],
        show_progress=False,
    )
    assert nothing is None
    names = {path.name for path in folder.glob("*.png")}
    expected = {f"mean_diff_mlp_output_pair{i}.png" for i in range(2)}
    expected |= {f"{kind}_mlp_output_layer_1_pair{i}.png" for kind in ("heatmap", "pca") for i in range(2)}
    assert names == expected
    assert json.loads((folder / "bias_metrics.json").read_text()) == json.loads(
        json.dumps(dict(metrics), allow_nan=False)
    )
    for path in folder.glob("*.png"):
        kind = path.name.split("_mlp")[0]
        assert pixels(path) >= PEER_PIXELS[kind]
        assert pixels(path)[1] >= PEER_PIXELS[kind][1]


@pytest.mark.parametrize(("figure_format", "start"), [("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_vector_formats(llama, tokenizer, pairs, tmp_path, figure_format, start) -> None:
    visualize_pca(
        llama, tokenizer, pairs[1], "mlp_output_layer_1", output_dir=tmp_path, figure_format=figure_format
    )
    assert (tmp_path / f"pca_mlp_output_layer_1_pair0.{figure_format}").read_bytes().startswith(start)


def test_tokens_are_labels_and_the_changed_one_is_marked(llama, tokenizer, pairs) -> None:
    figure = visualize_heatmap(llama, tokenizer, pairs[1], "mlp_output_layer_1")
    labels = figure.axes[0].get_yticklabels()
    assert [label.get_text() for label in labels][:3] == ["the", "male → non - binary  ▸", "teacher"]
    assert [label.get_fontweight() for label in labels][:2] == ["normal", "bold"]
    plain = visualize_heatmap(llama, tokenizer, pairs[1], "mlp_output_layer_1", highlight_diff=False)
    assert plain.axes[0].get_yticklabels()[1].get_fontweight() == "normal"


def test_dollar_signs_are_no_formula(llama, tokenizer, tmp_path) -> None:
    visualize_mean_differences(llama, tokenizer, ("$x^$ old", "$x^$ young {a"), output_dir=tmp_path)
    assert (tmp_path / "mean_diff_mlp_output_pair0.png").is_file()


def test_bars_show_the_layers_that_were_asked_for(llama, tokenizer, pairs) -> None:
    figure = visualize_mean_differences(llama, tokenizer, pairs[0], layer_type="gate_proj", layers=[1, 3])
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["1", "3"]


def test_bars_show_one_layer_by_its_name(llama, tokenizer, pairs, tmp_path) -> None:
    figure = visualize_mean_differences(
        llama, tokenizer, pairs[0], layer_key="attention_output_layer_2", output_dir=tmp_path
    )
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["2"]
    assert [path.name for path in tmp_path.iterdir()] == ["mean_diff_attention_output_pair0.png"]


def test_drawing_processes_load_no_torch_and_make_no_state_of_pyplot() -> None:
    code = "import sys, optipfair_engine.bias.figures.writing as _; print('torch' in sys.modules)"
    code += "; print('matplotlib.pyplot' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


@pytest.mark.slow
def test_a_script_without_a_main_guard_is_not_run_twice(tmp_path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from pathlib import Path\n"
        "from optipfair_engine.bias.figures.writing import FigureWriter\n"
        "from optipfair_engine.bias.figures.kinds import BarData, Caption, Style\n"
        "print('started')\n"
        "with FigureWriter(8) as writer:\n"
        "    for i in range(8):\n"
        "        writer.submit(BarData(Caption('m', 'a', 'b'), 'x', [0], [1.0], [1.0]), Style(dpi=20), "
        f"Path({str(tmp_path)!r}) / f'{{i}}.png')\n"
    )
    run = subprocess.run([sys.executable, str(script)], check=True, capture_output=True, text=True)
    assert run.stdout == "started\n"
    assert len(list(tmp_path.glob("*.png"))) == 8


@pytest.mark.slow
def test_a_figure_that_cannot_be_written_is_an_error(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    data = BarData(Caption("m", "a", "b"), "x", [0], [1.0], [1.0])
    with pytest.raises(FigureError, match="1 of 8 figures failed"), FigureWriter(8) as writer:
        for i in range(7):
            writer.submit(data, Style(dpi=20), tmp_path / f"{i}.png")
        writer.submit(data, Style(dpi=20), tmp_path / "file" / "x.png")


def test_no_drawing_process_is_an_error_and_no_hang(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no python"))
    data = BarData(Caption("m", "a", "b"), "x", [0], [1.0], [1.0])
    with pytest.raises(FigureError, match="could be started"), FigureWriter(30) as writer:
        for i in range(30):
            writer.submit(data, Style(dpi=20), tmp_path / f"{i}.png")


def test_a_figure_too_small_for_its_texts_is_refused(llama, tokenizer, pairs, tmp_path) -> None:
    with pytest.raises(InvalidOptionError, match=r"too small for pca: .* at least \(1.90, 3.30\) inches"):
        visualize_pca(llama, tokenizer, pairs[0], "mlp_output_layer_1", figsize=(4, 3))
    with pytest.raises(InvalidOptionError, match=r"too small for heatmap: .* at least \(4.30, 3.20\)"):
        visualize_bias(llama, tokenizer, pairs, output_dir=tmp_path, figsize=(4, 4))
    assert not list(tmp_path.iterdir())
    assert visualize_pca(llama, tokenizer, pairs[0], "mlp_output_layer_1", figsize=(1.9, 3.3), dpi=40)


def test_without_highlighting_no_arrow_is_coloured(llama, tokenizer, pairs) -> None:
    colours = []
    for highlight in (True, False):
        figure = visualize_pca(
            llama, tokenizer, pairs[0], "mlp_output_layer_1", highlight_diff=highlight, dpi=40
        )
        arrows = next(c for c in figure.axes[0].collections if isinstance(c, Quiver))
        colours.append(len({tuple(colour) for colour in arrows.get_facecolor()}))
    assert colours == [2, 1]


def test_the_same_svg_has_the_same_bytes(llama, tokenizer, pairs, tmp_path) -> None:
    for name in ("a", "b"):
        visualize_mean_differences(
            llama, tokenizer, pairs[0], "mlp_output", output_dir=tmp_path / name, figure_format="svg"
        )
    a, b = (next((tmp_path / name).iterdir()).read_bytes() for name in ("a", "b"))
    assert a == b
