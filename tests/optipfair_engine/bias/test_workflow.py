from __future__ import annotations

import copy
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from optipfair_engine.cli.app import app
from optipfair_engine.errors import EngineError, InvalidOptionError
from optipfair_engine.workflow.bias import BiasOptions, bias_checkpoint


def save(model, tokenizer, folder: Path) -> Path:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(llama, tokenizer, tmp_path_factory) -> Path:
    return save(llama, tokenizer, tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def quieter(llama, tokenizer, tmp_path_factory) -> Path:
    model = copy.deepcopy(llama)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.down_proj.weight.mul_(0.05)
            layer.self_attn.o_proj.weight.mul_(0.05)
    return save(model, tokenizer, tmp_path_factory.mktemp("models") / "quieter")


def strict(path: Path):
    return json.loads(path.read_text(), parse_constant=lambda word: pytest.fail(f"{word} in {path.name}"))


def test_a_job_writes_figures_metrics_and_a_report(folder, tmp_path, templated_pairs) -> None:
    stages = []
    metrics = bias_checkpoint(
        folder,
        tmp_path / "out",
        BiasOptions(
            prompt_pairs=templated_pairs[:5],
            control_pairs=[
                ["the tall man sat", "the quiet man sat"],
                ["the new doctor sat", "the other doctor sat"],
            ],
            visualization_types=["mean_diff"],
            layer_types=["mlp_output"],
            neuron_ranking=True,
            figure_format="svg",
        ),
        report=lambda stage, *_: stages.append(stage),
    )
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir()} == {
        "mean_diff.svg",
        *(f"mean_diff_mlp_output_pair{i}.svg" for i in range(5)),
        *("bias_metrics.json", "bias_summary.json", "metrics.json", "report.html"),
    }
    assert strict(out / "metrics.json") == json.loads(json.dumps(metrics))
    assert list(strict(out / "bias_metrics.json")) == [f"pair_{i + 1}" for i in range(5)]
    summary = strict(out / "bias_summary.json")
    assert (
        summary["activations"]["overall"]["low"]
        <= metrics["mean_difference"]
        <= metrics["mean_difference_high"]
    )
    assert metrics["noise_floor_low"] <= metrics["noise_floor"] <= metrics["noise_floor_high"]
    assert metrics["noise_floor"] > 0
    assert metrics["neurons_tested"] == 4 * 48
    assert set(stages) == {"load", "bias", "plot", "save"}
    html = (out / "report.html").read_text()
    assert html.count("<figure>") == 6
    assert not re.findall(r'(?:src|href)="(?!data:|#)', html)  # nothing is fetched


def test_a_baseline_gives_an_outcome(folder, quieter, tmp_path, templated_pairs) -> None:
    options = BiasOptions(prompt_pairs=templated_pairs, visualization_types=())
    better = bias_checkpoint(quieter, tmp_path / "a", options, baseline=folder)
    assert better["outcome"] == "better"
    assert better["bias_change"] < 0
    same = bias_checkpoint(folder, tmp_path / "b", options, baseline=folder)
    assert same["outcome"] == "inconclusive"
    assert same["bias_change"] == 0
    assert "better" in (tmp_path / "a" / "report.html").read_text()


def test_templates_compare_every_two_attributes(folder, tmp_path) -> None:
    options = BiasOptions(
        template="the {attribute} man sat", attributes=["young", "old", "white"], visualization_types=()
    )
    metrics = bias_checkpoint(folder, tmp_path, options)
    assert (metrics["pairs"], metrics["templates"]) == (3, 1)


def test_one_template_gives_neither_interval_nor_outcome(folder, quieter, tmp_path) -> None:
    options = BiasOptions(
        template="the {attribute} man sat",
        attributes=["young", "old", "white"],
        control_pairs=[["the tall man sat", "the quiet man sat"]],
        visualization_types=(),
    )
    metrics = bias_checkpoint(quieter, tmp_path, options, baseline=folder)
    assert metrics["bias_change"] < -0.5
    assert metrics["outcome"] == "inconclusive"
    for name in ("mean_difference", "bias_change", "effect_over_noise"):
        assert metrics[name] is not None
        assert metrics[f"{name}_low"] is metrics[f"{name}_high"] is None
    summary = strict(tmp_path / "bias_summary.json")["activations"]
    assert summary["overall"]["above_noise"] is None
    assert any("3 pairs from one template" in text for text in summary["warnings"])
    assert any("Control pairs from one template" in text for text in summary["warnings"])


def test_a_model_from_the_hub_cache_goes_by_its_name(folder, tmp_path, templated_pairs) -> None:
    commit = tmp_path / "models--org--tiny-llama" / "snapshots" / ("0" * 40)
    shutil.copytree(folder, commit)
    options = BiasOptions(
        prompt_pairs=templated_pairs[:1],
        visualization_types=["mean_diff"],
        layer_types=["mlp_output"],
        figure_format="svg",
    )
    bias_checkpoint(commit, tmp_path / "out", options)
    assert "<h1>Bias of org/tiny-llama</h1>" in (tmp_path / "out" / "report.html").read_text()
    assert "org/tiny-llama ·" in (tmp_path / "out" / "mean_diff_mlp_output_pair0.svg").read_text()


def test_the_report_shows_no_figures_of_an_earlier_run(folder, tmp_path, templated_pairs) -> None:
    for pairs in (templated_pairs[:3], templated_pairs[:2]):
        options = BiasOptions(
            prompt_pairs=pairs,
            visualization_types=["mean_diff"],
            layer_types=["mlp_output"],
            figure_format="svg",
        )
        bias_checkpoint(folder, tmp_path, options)
    assert len(list(tmp_path.glob("*_pair*.svg"))) == 3
    shown = re.findall(r"<figcaption>(.*?)</figcaption>", (tmp_path / "report.html").read_text())
    assert shown == ["mean_diff.svg", "mean_diff_mlp_output_pair0.svg", "mean_diff_mlp_output_pair1.svg"]


def test_the_report_says_where_figures_are_that_it_cannot_show(folder, tmp_path, templated_pairs) -> None:
    options = BiasOptions(
        prompt_pairs=templated_pairs[:2],
        visualization_types=["mean_diff"],
        layer_types=["mlp_output"],
        figure_format="pdf",
    )
    bias_checkpoint(folder, tmp_path, options)
    assert "2 pdf files lie beside this report" in (tmp_path / "report.html").read_text()


def test_a_baseline_with_fewer_layers_draws_nothing_and_so_lacks_nothing(
    folder, make_llama, tokenizer, tmp_path, templated_pairs
) -> None:
    model = make_llama()
    model.model.layers = model.model.layers[:2]
    model.config.num_hidden_layers = 2
    shorter = save(model, tokenizer, tmp_path / "shorter")
    options = BiasOptions(
        prompt_pairs=templated_pairs[:1],
        visualization_types=["mean_diff"],
        layer_types=["mlp_output"],
        layers=[3],
        figure_format="svg",
    )
    assert "bias_change" in bias_checkpoint(folder, tmp_path / "out", options, baseline=shorter)


def test_pairs_may_name_their_templates(folder, tmp_path) -> None:
    pairs = [
        {"prompt1": "the tall man sat", "prompt2": f"the {word} man sat", "template": name}
        for word, name in (("quiet", "one"), ("old", "one"), ("young", "two"))
    ]
    options = BiasOptions(prompt_pairs=pairs, visualization_types=())
    assert bias_checkpoint(folder, tmp_path / "out", options)["templates"] == 2


def test_two_pairs_are_too_few_to_test_neurons_and_the_report_says_so(folder, tmp_path, pairs) -> None:
    options = BiasOptions(prompt_pairs=pairs[:1], visualization_types=(), neuron_ranking=True)
    metrics = bias_checkpoint(folder, tmp_path / "out", options)
    assert (metrics["neurons_tested"], metrics["neurons_significant"]) == (0, None)
    assert "Ranked by effect and not tested: 1 pair " in (tmp_path / "out" / "report.html").read_text()


def test_no_prompts_means_the_default_ones_with_controls(folder, tmp_path) -> None:
    metrics = bias_checkpoint(folder, tmp_path, BiasOptions(visualization_types=()))
    assert (metrics["pairs"], metrics["control_pairs"]) == (7, 7)


def test_suites(folder, quieter, tmp_path) -> None:
    suite = tmp_path / "crows.csv"
    rows = "".join(
        f"{i},the male man {w},the female man {w},stereo,gender\n" for i, w in enumerate(["sat", "walked"])
    )
    suite.write_text(",sent_more,sent_less,stereo_antistereo,bias_type\n" + rows)
    metrics = bias_checkpoint(folder, tmp_path / "a", BiasOptions(suite=suite), baseline=quieter)
    assert metrics["items"] == 2
    assert metrics["outcome"] == "inconclusive"
    assert 0 <= metrics["crows_pairs_score_low"] <= metrics["crows_pairs_score"]
    assert strict(tmp_path / "a" / "bias_metrics.json")["suite"] == "crows_pairs"
    assert strict(tmp_path / "a" / "bias_summary.json")["comparison"]["margin"] == 0.02
    report = (tmp_path / "a" / "report.html").read_text()
    assert re.search(
        r"perplexity [\d.,]+ \(baseline [\d.,]+\)\. With 2 items, a preference 50.0 points", report
    )
    bias_checkpoint(folder, tmp_path / "c", BiasOptions(suite=suite, margin=0.3), baseline=quieter)
    assert strict(tmp_path / "c" / "bias_summary.json")["comparison"]["margin"] == 0.3
    for options in ({"neuron_ranking": True}, {"layer_types": ["mlp_output"]}, {"layers": "all"}):
        with pytest.raises(InvalidOptionError, match="for prompt pairs only"):
            bias_checkpoint(folder, tmp_path / "d", BiasOptions(suite=suite, **options))
    named = tmp_path / "pairs.json"
    named.write_text('[{"prompt1": "the old man", "prompt2": "the young man", "template": "t"}]')
    metrics = bias_checkpoint(folder, tmp_path / "b", BiasOptions(suite=named, visualization_types=()))
    assert metrics["pairs"] == 1


def test_a_stereoset_comparison_names_both_models_scores(folder, quieter, tmp_path) -> None:
    suite = tmp_path / "stereo.jsonl"
    rows = [("man", "old", "young"), ("man", "male", "female"), ("baker", "black", "white")]
    suite.write_text(
        "".join(
            f'{{"type": "intrasentence", "target": "{t}", "bias_type": "x", "context": "the BLANK {t}", '
            f'"stereotype": "the {a} {t}", "anti-stereotype": "the {b} {t}", "unrelated": "the . {t}"}}\n'
            for t, a, b in rows
        )
    )
    out = tmp_path / "out"
    metrics = bias_checkpoint(quieter, out, BiasOptions(suite=suite), baseline=folder)
    summary = strict(out / "bias_summary.json")
    for name in ("ss", "lms", "icat"):
        assert metrics[f"stereoset_{name}_baseline"] == summary["baseline_behaviour"]["overall"][name]
        assert (
            metrics[f"stereoset_{name}_low"]
            <= metrics[f"stereoset_{name}"]
            <= metrics[f"stereoset_{name}_high"]
        )
    before = summary["comparison"]["overall"]["before"]
    assert 100 * before == pytest.approx(metrics["stereoset_ss_baseline"])
    html = (out / "report.html").read_text()
    assert "baseline, overall" in html and "moves towards 50 %" in html


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"template": "x {attribute}"}, "belong together"),
        ({"prompt_pairs": [["a", "b"]], "suite": Path("x")}, "mutually exclusive"),
        ({"visualization_types": ["bars"]}, "visualization_types must be among"),
        ({"figure_format": "gif"}, "figure_format must be one of"),
        ({"margin": -1}, "margin must be at least 0"),
    ],
)
def test_contradicting_options_are_refused_at_once(options, message) -> None:
    with pytest.raises(InvalidOptionError, match=message):
        BiasOptions(**options)


def test_wrong_prompts_are_refused_before_a_model_is_loaded(tmp_path) -> None:
    for options, message in [
        (BiasOptions(prompt_pairs=[["one"]]), "pair 1 is not two texts"),
        (BiasOptions(template="no place", attributes=["a", "b"]), "needs {attribute}"),
        (BiasOptions(template="{attribute}", attributes=["a", "b", "a "]), "'a' more than once"),
        (BiasOptions(template="{attribute}", attributes=["a", " "]), "none of them blank"),
        (BiasOptions(prompt_pairs=[["a", "b"], ["a", "a "]]), "Prompt pair 2: the two prompts are equal"),
        (BiasOptions(control_pairs=[["a", " "]]), "Control pair 1: the second prompt is blank"),
        (BiasOptions(suite=tmp_path / "none.csv"), "no suite file none.csv"),
    ]:
        with pytest.raises(EngineError, match=message):
            bias_checkpoint(tmp_path / "no model", tmp_path / "out", options)


def test_the_commands(folder, quieter, tmp_path) -> None:
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(
        "".join(f'["the old {s} sat", "the young {s} sat"]\n' for s in ("man", "doctor", "lawyer", "baker"))
    )
    arguments = ["--prompt-pairs", str(pairs), "--device", "cpu", "--quiet", "--json"]
    runner = CliRunner()
    bias = ["bias", "--model-path", str(folder), "--output-path", str(tmp_path / "a"), *arguments]
    result = runner.invoke(app, [*bias, "--visualization-types", "none", "--neuron-ranking"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["pairs"] == 4
    compare = [
        "compare",
        "--before",
        str(folder),
        "--after",
        str(quieter),
        "--output-path",
        str(tmp_path / "b"),
    ]
    result = runner.invoke(app, [*compare, *arguments])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["outcome"] == "better"
    lines = [
        {"prompt1": f"the {old} man sat", "prompt2": f"the {old} woman sat", "template": "same"}
        for old in ("old", "young")
    ]
    pairs.write_text(
        "".join(json.dumps(line) + "\n" for line in [*lines, ["the white man", "the black man"]])
    )
    again = [*bias, "--visualization-types", "none", "--control-pairs", str(pairs), "--overwrite"]
    result = runner.invoke(app, again)
    assert json.loads(result.stdout)["templates"] == 2, result.output
    assert runner.invoke(app, [*bias, "--visualization-types", "bars"]).exit_code == 2


def test_by_default_one_chart_is_drawn_and_the_report_shows_it(folder, tmp_path, templated_pairs) -> None:
    bias_checkpoint(
        folder,
        tmp_path,
        BiasOptions(prompt_pairs=templated_pairs),
        model_name="mine/tiny",
        report=lambda *_: None,
    )
    assert [path.name for path in tmp_path.glob("*.png")] == ["mean_diff.png"]
    html = (tmp_path / "report.html").read_text()
    assert html.count("<figure>") == 1
    assert 'alt="Line chart' in html
    body = html.partition("</h1>")[2].lstrip()
    assert body.startswith('<p class="conclusion">mine/tiny ')
    assert "<h1>Bias of mine/tiny</h1>" in html
    assert "prefers-color-scheme:dark" in html
    assert f'<td class="text" dir="auto">{templated_pairs[0][1]}</td>' in html


def test_words_added_at_the_end_leave_no_metric_that_a_gate_could_pass_on(folder, tmp_path) -> None:
    options = BiasOptions(prompt_pairs=[["the old man", "the old man sat"], ["the man", "the man sat"]])
    metrics = bias_checkpoint(folder, tmp_path, options)
    assert "mean_difference" not in metrics
    assert not list(tmp_path.glob("*.png"))
    assert strict(tmp_path / "bias_summary.json")["activations"]["overall"]["value"] is None
    assert "Nothing can be said of tiny" in (tmp_path / "report.html").read_text()


def test_a_pairs_file_with_two_equal_prompts_is_refused_by_number(tmp_path) -> None:
    suite = tmp_path / "pairs.jsonl"
    suite.write_text('["the old man", "the young man"]\n["the man", "the man"]\n')
    with pytest.raises(InvalidOptionError, match="pair 2: the two prompts are equal"):
        bias_checkpoint(tmp_path / "no model", tmp_path / "out", BiasOptions(suite=suite))
