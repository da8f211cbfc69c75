from __future__ import annotations

import json
from html import unescape

import pytest
from PIL import Image

from optipfair_engine.bias.cause.patching import patch_pairs
from optipfair_engine.bias.figures.drawing import draw
from optipfair_engine.bias.figures.effects import effects_of
from optipfair_engine.bias.figures.kinds import Style
from optipfair_engine.errors import InvalidOptionError
from optipfair_engine.workflow.bias import BiasOptions, bias_checkpoint
from tests.optipfair_engine.bias.conftest import SUBJECTS
from tests.tiny import write_checkpoint


@pytest.fixture(scope="module")
def folder(edited, tokenizer, tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("edited") / "model", edited.model, tokenizer)


@pytest.fixture(scope="module")
def out(folder, tmp_path_factory):
    """A job that patches heads, with itself as baseline, whose units are not patched."""
    pairs = [[f"the male {s} walked home", f"the female {s} walked home"] for s in SUBJECTS[:3]]
    stages: list[str] = []
    output = tmp_path_factory.mktemp("report") / "out"
    options = BiasOptions(prompt_pairs=pairs, patching="heads")
    bias_checkpoint(folder, output, options, baseline=folder, report=lambda stage, *_: stages.append(stage))
    assert stages.count("cause") == 16
    assert "estimate" in stages
    return output


def test_a_job_says_what_was_patched_in_numbers_and_in_words(out) -> None:
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["patched_units"] == 16
    assert metrics["largest_effect_low"] <= metrics["largest_effect"] <= metrics["largest_effect_high"]
    assert 0 < metrics["next_token_distance"] < 1
    assert metrics["next_token_distance_baseline"] == pytest.approx(metrics["next_token_distance"], rel=1e-5)
    assert metrics["next_token_change"] == 0
    assert metrics["next_token_outcome"] == "inconclusive"
    assert any(warning["code"] == "bias_cause" for warning in metrics["warnings"])
    summary = json.loads((out / "bias_summary.json").read_text())["cause"]
    assert summary["patched"][0]["effect"]["value"] == metrics["largest_effect"]
    assert {unit["component"] for unit in summary["patched"]} == {"head"}
    page = unescape((out / "report.html").read_text())
    assert "What causes the difference" in page
    assert "head with the largest effect" in page
    assert "distance of the next-token distributions" in page
    with Image.open(out / "effects.png") as image:
        assert image.width > 2000


def test_figures_name_the_largest_effects_and_follow_the_layers(edited, tokenizer) -> None:
    pairs = [("the male doctor walked home", "the female doctor walked home")]
    heads = effects_of(patch_pairs(edited.model, tokenizer, pairs, "heads"), "a model")
    assert len(heads.named) == 6
    lines = draw(heads, Style(dpi=20)).axes[0].lines
    assert [line.get_linestyle() for line in lines] == ["-", "None"]  # zero, and points that nothing joins
    layers = effects_of(patch_pairs(edited.model, tokenizer, pairs, "layers"), "a model")
    assert [series.name for series in layers.series] == ["attention", "mlp"]
    assert [list(series.x) for series in layers.series] == [[0, 1, 2, 3]] * 2


def test_a_benchmark_has_nothing_to_patch(folder, tmp_path) -> None:
    suite = tmp_path / "crows.csv"
    suite.write_text("sent_more,sent_less,stereo_antistereo,bias_type\nthe man,the woman,stereo,gender\n")
    with pytest.raises(InvalidOptionError, match="patching: for prompt pairs only"):
        bias_checkpoint(folder, tmp_path / "out", BiasOptions(suite=suite, patching="heads"))
    for asked in ({"patching": "heads"}, {"generation": {"max_new_tokens": 2}}):
        with pytest.raises(InvalidOptionError, match=f"{next(iter(asked))}: for prompt pairs only"):
            BiasOptions(suites=["crows_pairs"], **asked)
    with pytest.raises(InvalidOptionError, match="patching must be one of neurons, heads, layers"):
        BiasOptions(patching="tokens")
