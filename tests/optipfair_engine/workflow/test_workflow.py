"""The workflows: from folder to folder, with metrics, plots and progress."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)
from typer.testing import CliRunner

from optipfair_engine import load_pruned
from optipfair_engine.architectures import locate
from optipfair_engine.cli.app import app
from optipfair_engine.errors import (
    CalibrationError,
    InvalidOptionError,
    NonFiniteWeightsError,
    PlanError,
    TokenizerError,
)
from optipfair_engine.options.prune import PruneOptions
from optipfair_engine.workflow import (
    analyze_checkpoint,
    evaluate_checkpoint,
    importance_checkpoint,
    prune_checkpoint,
)
from optipfair_engine.workflow.analyze import describe
from optipfair_engine.workflow.common import resolve_device
from tests.tiny import byte_tokenizer, tiny_llama, write_checkpoint

TEXT = "Structured pruning removes whole neurons, so that the smaller model is faster on any machine. " * 12
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("workflow") / "model"
    tokenizer = byte_tokenizer([TEXT])
    heads = {"num_attention_heads": 8, "num_key_value_heads": 4}
    model = tiny_llama(
        vocab_size=len(tokenizer), intermediate_size=96, bos_token_id=1, eos_token_id=1, **heads
    )
    return write_checkpoint(folder, model.to(torch.bfloat16), tokenizer)


@pytest.fixture
def bare_source(source: Path, tmp_path: Path) -> Path:
    """The same model without a tokenizer."""
    folder = tmp_path / "bare"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes((source / name).read_bytes())
    return folder


class Told:
    """A reporter that remembers."""

    def __init__(self) -> None:
        self.steps: list[tuple[str, int, int]] = []

    def __call__(self, stage: str, done: int, total: int, message: str) -> None:
        self.steps.append((stage, done, total))


def test_prune_writes_a_checkpoint_that_plain_transformers_loads(source: Path, tmp_path: Path) -> None:
    told = Told()
    metrics = prune_checkpoint(source, tmp_path / "out", PruneOptions(pruning_percentage=20), report=told)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.config.intermediate_size == 77
    assert model.dtype == torch.bfloat16
    assert metrics["pruned_parameters"] == sum(p.numel() for p in model.parameters())
    assert metrics["reload_check"] == "logits"
    assert json.loads((tmp_path / "out/metrics.json").read_text()) == metrics
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"plan.json", "README.md", "optipfair_manifest.json", "tokenizer.json", "config.json"} <= names
    for plot in ("parameters.png", "kept_neurons.png"):
        assert (tmp_path / "out" / plot).read_bytes().startswith(PNG)
    for stage in ("select", "prune"):
        assert [done for name, done, _ in told.steps if name == stage] == [1, 2, 3, 4]


def test_the_manifest_holds_the_hash_of_every_file_but_itself_and_the_metrics(
    source: Path, tmp_path: Path
) -> None:
    import hashlib

    prune_checkpoint(source, tmp_path / "out", PruneOptions())
    files = json.loads((tmp_path / "out/optipfair_manifest.json").read_text())["files"]
    present = {path.name for path in (tmp_path / "out").iterdir()}
    assert set(files) == present - {"optipfair_manifest.json", "metrics.json"}
    for name, entry in files.items():
        assert entry["sha256"] == hashlib.sha256((tmp_path / "out" / name).read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("options", "plot"),
    [
        ({"pruning_type": "DEPTH", "num_layers_to_remove": 1}, "kept_layers.png"),
        ({"pruning_type": "DEPTH", "depth_pruning_percentage": 50.0}, "kept_layers.png"),
        ({"pruning_type": "ATTENTION", "pruning_percentage": 50}, "kept_heads.png"),
        ({"layer_indices": [1, 2], "pruning_percentage": 50}, "kept_neurons.png"),
        ({"expansion_rate": 200, "expansion_divisor": 32}, "kept_neurons.png"),
    ],
)
def test_every_pruning_type_reloads(source: Path, tmp_path: Path, options: dict[str, Any], plot: str) -> None:
    metrics = prune_checkpoint(source, tmp_path / "out", PruneOptions(**options))
    assert (tmp_path / "out" / plot).is_file()
    model = load_pruned(tmp_path / "out")
    assert (
        sum(p.numel() for p in model.parameters())
        == metrics["pruned_parameters"]
        < metrics["original_parameters"]
    )


def test_calibration_and_evaluation_texts(source: Path, tmp_path: Path) -> None:
    metrics = prune_checkpoint(
        source,
        tmp_path / "out",
        PruneOptions(max_length=32, num_samples=4),
        calibration_texts=[TEXT],
        evaluation_texts=[TEXT],
    )
    assert metrics["perplexity_ratio"] == metrics["perplexity_pruned"] / metrics["perplexity_dense"]
    method = json.loads((tmp_path / "out/plan.json").read_text())["method"]
    assert method["data_driven"] is True
    assert method["calibration"]["tokens"] > 0


def test_the_same_options_give_the_same_checkpoint_bytes(source: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        prune_checkpoint(source, tmp_path / name, PruneOptions(), calibration_texts=[TEXT])
    for path in (tmp_path / "a").iterdir():
        if path.name != "metrics.json":
            assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


def test_a_plan_can_be_applied_again(source: Path, tmp_path: Path) -> None:
    prune_checkpoint(source, tmp_path / "a", PruneOptions(pruning_percentage=30))
    prune_checkpoint(source, tmp_path / "b", PruneOptions(), plan=tmp_path / "a")
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("a", "b")]
    assert weights[0] == weights[1]
    with pytest.raises(PlanError):
        prune_checkpoint(tmp_path / "a", tmp_path / "c", PruneOptions(), plan=tmp_path / "a")


def test_the_source_stays_as_it_is(source: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in source.iterdir()}
    prune_checkpoint(source, tmp_path / "out", PruneOptions())
    assert before == {path.name: path.read_bytes() for path in source.iterdir()}


def test_a_model_without_tokenizer_can_be_pruned_but_not_calibrated(
    bare_source: Path, tmp_path: Path
) -> None:
    assert prune_checkpoint(bare_source, tmp_path / "out", PruneOptions())["pruned_layers"] == 4
    with pytest.raises(TokenizerError):
        prune_checkpoint(bare_source, tmp_path / "out2", PruneOptions(), calibration_texts=[TEXT])
    assert not (tmp_path / "out2").exists()


def test_nan_weights_are_refused_by_name(source: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(source)
    model.model.layers[2].mlp.up_proj.weight.data[3, 4] = float("nan")
    model.save_pretrained(tmp_path / "broken")
    with pytest.raises(NonFiniteWeightsError, match=r"model\.layers\.2\.mlp\.up_proj\.weight"):
        prune_checkpoint(tmp_path / "broken", tmp_path / "out", PruneOptions())


@pytest.mark.parametrize(
    "options",
    [
        {"pruning_percentage": 20, "expansion_rate": 200},
        {"pruning_percentage": 100},
        {"pruning_percentage": -1},
        {"neuron_selection_method": "XXX"},
        {"pruning_percentage": "20"},
        {"pruning_percentage": True},
        {"expansion_rate": "200"},
        {"expansion_divisor": 48},
        {"expansion_divisor": 64.0},
        {"pruning_type": "DEPTH", "num_layers_to_remove": "3"},
        {"pruning_type": "DEPTH", "pruning_percentage": 20},
        {"num_layers_to_remove": 2},
        {"pruning_type": "DEPTH", "layer_indices": [1], "layer_selection_method": "first"},
        {"attention_unit": "query_head"},
        {"target_bytes": 0},
        {"dtype": "int8"},
    ],
)
def test_contradicting_options_are_refused_when_they_are_made(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidOptionError):
        PruneOptions(**options)


def test_a_work_folder_without_calibration_is_refused_not_ignored(source: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidOptionError, match="calibration"):
        prune_checkpoint(source, tmp_path / "out", PruneOptions(execution="streamed"), work=tmp_path / "work")


def test_fairness_is_refused_not_ignored(source: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidOptionError, match="fairness"):
        prune_checkpoint(source, tmp_path / "out", PruneOptions(fairness={"weight": 1.0}))


def test_analyze_adds_up(source: Path, tmp_path: Path) -> None:
    metrics = analyze_checkpoint(source, tmp_path / "out")
    assert sum(metrics["distribution"].values()) == metrics["parameters"]
    assert metrics["distribution"]["mlp"] == 4 * 3 * 32 * 96
    assert metrics["compatible_with_glu_pruning"] is True
    assert (tmp_path / "out/distribution.png").read_bytes().startswith(PNG)
    for estimate in metrics["estimates"]:
        options = PruneOptions(pruning_percentage=estimate["pruning_percentage"], verify="none")
        pruned = prune_checkpoint(source, tmp_path / str(estimate["pruning_percentage"]), options)
        assert pruned["pruned_parameters"] == estimate["parameters"]


def test_analyze_tells_other_stacks_of_layers_from_embeddings() -> None:
    model = T5ForConditionalGeneration(
        T5Config(vocab_size=48, d_model=16, d_ff=24, num_layers=2, num_heads=2, d_kv=8)
    )
    found = describe(locate(model))["distribution"]
    assert found["other layers"] == sum(p.numel() for p in model.decoder.block.parameters())
    assert sum(found.values()) == sum(p.numel() for p in model.parameters())


def test_importance_writes_scores_and_a_plot(source: Path, tmp_path: Path) -> None:
    told = Told()
    metrics = importance_checkpoint(
        source, tmp_path / "out", texts=[TEXT], max_length=16, num_samples=6, batch_size=2, report=told
    )
    assert set(metrics["importance"]) == {"0", "1", "2", "3"}
    assert metrics["min_importance"] == min(metrics["importance"].values())
    assert sorted(metrics["least_important"]) == [0, 1, 2, 3]
    assert ("importance", 3, 3) in told.steps
    assert (tmp_path / "out/importance.png").read_bytes().startswith(PNG)
    with pytest.raises(CalibrationError):
        importance_checkpoint(source, None, texts=[])


def test_evaluate_compares_with_a_baseline(source: Path, tmp_path: Path) -> None:
    prune_checkpoint(source, tmp_path / "pruned", PruneOptions(pruning_percentage=50, verify="none"))
    metrics = evaluate_checkpoint(
        tmp_path / "pruned",
        tmp_path / "out",
        baseline=source,
        texts=[TEXT],
        prompts=["Structured pruning"],
        timing=True,
        max_length=32,
        max_new_tokens=3,
        num_runs=2,
        warmup_runs=0,
    )
    assert metrics["perplexity_ratio"] == metrics["perplexity"] / metrics["perplexity_baseline"]
    ratio = metrics["tokens_per_second"] / metrics["tokens_per_second_baseline"]
    assert metrics["tokens_per_second_ratio"] == pytest.approx(ratio)
    assert set(metrics["generations"][0]) == {"prompt", "text", "text_baseline"}
    assert (tmp_path / "out/perplexity.png").is_file() and (tmp_path / "out/tokens_per_second.png").is_file()


def test_perplexities_over_different_tokens_have_no_ratio(source: Path, tmp_path: Path) -> None:
    other = shutil.copytree(source, tmp_path / "other")
    byte_tokenizer(["zzz"], vocab_size=258).save_pretrained(other)
    metrics = evaluate_checkpoint(source, None, baseline=other, texts=[TEXT], max_length=32)
    assert "perplexity_ratio" not in metrics
    assert "can't be compared" in metrics["warnings"][0]["message"]


def test_the_command_shows_median_and_spread_of_the_speed(source: Path) -> None:
    options = ["--timing", "--prompt", "Structured", "--max-new-tokens", "2", "--num-runs", "2", "--quiet"]
    alone = CliRunner().invoke(app, ["evaluate", "--model-path", str(source), *options])
    assert alone.exit_code == 0 and "median" in alone.stdout and "deviation" in alone.stdout
    pair = ["--baseline", str(source), *options]
    beside = CliRunner().invoke(app, ["evaluate", "--model-path", str(source), *pair])
    assert beside.exit_code == 0 and "median" in beside.stdout and "90th" in beside.stdout


def test_the_command_names_a_missing_text(source: Path, tmp_path: Path) -> None:
    options = ["--model-path", str(source), "--calibration", str(tmp_path / "nowhere.txt")]
    result = CliRunner().invoke(app, ["importance", *options])
    assert result.exit_code == 1 and "There is no file nowhere.txt" in result.stderr


def test_evaluating_nothing_is_refused(source: Path) -> None:
    with pytest.raises(InvalidOptionError, match="nothing to evaluate"):
        evaluate_checkpoint(source, None)


@pytest.mark.parametrize("verify_level", ["structure", "logits"])
def test_a_pruned_checkpoint_of_unequal_layers_can_be_pruned_again(
    source: Path, tmp_path: Path, verify_level: Any
) -> None:
    first = PruneOptions(pruning_percentage=50, layer_indices=[1], verify=verify_level)
    prune_checkpoint(source, tmp_path / "a", first)
    prune_checkpoint(tmp_path / "a", tmp_path / "b", PruneOptions(pruning_percentage=25, verify=verify_level))
    depth = PruneOptions(pruning_type="DEPTH", layer_indices=[0], verify=verify_level)
    prune_checkpoint(tmp_path / "a", tmp_path / "c", depth)
    widths = [
        [layer.mlp.up_proj.out_features for layer in load_pruned(tmp_path / name).model.layers]
        for name in "abc"
    ]
    assert widths == [[96, 48, 96, 96], [72, 36, 72, 72], [48, 96, 96]]


def test_auto_is_an_accelerator_with_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind, expected in (("mps", "cpu"), ("cuda", "cuda")):
        found = torch.device(kind)
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda found=found, **_: found)
        assert resolve_device("auto") == expected
