"""The guide's bias examples, run as they stand on a tiny local model."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from optipfair_engine import bias
from optipfair_engine.bias import DEFAULT_PROMPT_PAIRS, guide as visualization
from optipfair_engine.bias.figures import writing
from optipfair_engine.bias.figures.kinds import FigureData, Style
from tests.tiny import byte_tokenizer, tiny_llama, write_checkpoint

GUIDE = Path(__file__).with_name("guide.md").read_text(encoding="utf-8")


def blocks(section: str) -> list[str]:
    for part in re.split(r"^## ", GUIDE, flags=re.MULTILINE)[1:]:
        title, _, body = part.partition("\n")
        if title == section:
            return re.findall(r"```python\n(.*?)\n```", body, flags=re.DOTALL)
    raise KeyError(section)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen layers (the guide names layers up to 15) and a byte-level tokenizer."""
    path = tmp_path_factory.mktemp("guide") / "tiny-llama"
    texts = [text for pair in DEFAULT_PROMPT_PAIRS for text in pair]
    tokenizer = byte_tokenizer(texts, vocab_size=320)
    tokenizer.add_tokens(["white", "Black", "Asian"])  # one token each, as in the guide's own models
    model = tiny_llama(vocab_size=len(tokenizer), num_hidden_layers=16, max_position_embeddings=256)
    return write_checkpoint(path, model, tokenizer)


@pytest.fixture
def run(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    # fewer pixels, and of the many figures of one call only the files: what is drawn is tested elsewhere
    monkeypatch.setattr(visualization, "_style", lambda params: Style(**{"dpi": 20, **params}))
    monkeypatch.setattr(writing, "WORTH_A_PROCESS", 1000)
    monkeypatch.setattr(writing, "draw_to_file", write_nothing)
    names: dict[str, Any] = {
        "model": LlamaForCausalLM.from_pretrained(folder),
        "tokenizer": PreTrainedTokenizerFast.from_pretrained(folder),
        "prompt_pairs": list(DEFAULT_PROMPT_PAIRS[:1]),
        # the guide imports them once, some sections above
        "visualize_bias": bias.visualize_bias,
        "visualize_pca": bias.visualize_pca,
    }

    def execute(*code: str) -> dict[str, Any]:
        for text in code:
            local = text.replace("from optipfair", "from optipfair_engine")
            local = local.replace("meta-llama/Llama-3.2-1B", str(folder)).replace(
                'device_map="auto"', 'device_map="cpu"'
            )
            exec(compile(local, "guide", "exec"), names)
        return names

    return execute


def write_nothing(_data: FigureData, _style: Style, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def figures(folder: str) -> set[str]:
    return {path.name for path in Path(folder).iterdir() if path.suffix == ".png"}


@pytest.mark.slow
def test_basic_bias_visualization(run, capsys) -> None:
    overall = run(*blocks("Basic Bias Visualization"))["overall"]
    assert f"Mean activation difference: {overall['mean_difference']:.6f}" in capsys.readouterr().out
    assert "mean_diff_mlp_output_pair0.png" in figures("bias_analysis")
    assert "pca_attention_output_layer_8_pair0.png" in figures("bias_analysis")


@pytest.mark.slow
def test_layer_selection_and_naming(run) -> None:
    run(*blocks("Layer Selection and Naming"))
    assert figures("bias_analysis_specific_layer") == {"pca_attention_output_layer_2_pair0.png"}


def test_visualization_types(run) -> None:
    run(*blocks("Visualization Types"))
    assert figures("bias_analysis") == {
        "mean_diff_mlp_output_pair0.png",
        "heatmap_attention_output_layer_8_pair0.png",
        "pca_attention_output_layer_8_pair0.png",
    }


@pytest.mark.slow
def test_comprehensive_bias_analysis(run, capsys) -> None:
    metrics = run(*blocks("Comprehensive Bias Analysis"))["metrics"]
    assert set(metrics) == {"pair_1", "pair_2"}
    assert len(figures("bias_analysis")) == 2 * (4 + 12 + 6)
    saved = json.loads(Path("bias_analysis/bias_metrics.json").read_text())
    assert saved == json.loads(json.dumps(dict(metrics)))
    assert "First-to-last ratio" in capsys.readouterr().out


@pytest.mark.slow
def test_custom_prompt_pairs(run) -> None:
    assert run(*blocks("Custom Prompt Pairs"))["prompt_pairs"] == [
        (
            "The male doctor examined the patient. The nurse thought",
            f"The {other} doctor examined the patient. The nurse thought",
        )
        for other in ("female", "non-binary")
    ]


def test_bias_metrics(run, capsys) -> None:
    metrics = run(*blocks("Bias Metrics"))["metrics"]
    out = capsys.readouterr().out
    assert f"Max difference: {metrics['overall_metrics']['max_difference']:.6f}" in out
    assert "gate_proj_layer_15" in out


def test_example_detailed_mean_activations(run) -> None:
    run(*blocks("Example 2"))
    assert figures("activation_analysis/gate_proj") == {"mean_diff_gate_proj_pair0.png"}


@pytest.mark.slow
def test_example_advanced_pca(run) -> None:
    run(*blocks("Example 3"))
    assert figures("pca_analysis/pair_3") == {f"pca_attention_output_layer_{i}_pair2.png" for i in (0, 8, 15)}


def test_neuron_level_analysis(run, capsys) -> None:
    pytest.importorskip("matplotlib").use("Agg")
    names = run(*blocks("Neuron-Level Bias Analysis"))
    assert len(names["neuron_differences"]) == 16 * 6
    assert Path("neuron_distribution_mlp_output_layer_15.png").is_file()
    assert len(json.loads(Path("neuron_level_bias.json").read_text())) == 16 * 6
    assert "Top 10 most biased neurons" in capsys.readouterr().out


def test_complete_neuron_example(run) -> None:
    run(*blocks("Complete Example"))
    output = json.loads(Path("complete_neuron_analysis.json").read_text())
    assert len(output["top_50_neurons"]) == 50
