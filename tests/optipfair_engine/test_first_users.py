"""What first users did with the command and the calls, and what they should have been told."""

from __future__ import annotations

import json
import math
import stat
from pathlib import Path
from typing import Any

import pytest
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
)
from typer.testing import CliRunner

from optipfair_engine.cli.app import app
from optipfair_engine.errors import InvalidOptionError, UnsupportedModelError
from optipfair_engine.options.prune import PruneOptions
from optipfair_engine.plans.plan import PruningPlan
from optipfair_engine.pruning.cautions import cautions_of
from optipfair_engine.workflow import evaluate_checkpoint, importance_checkpoint, prune_checkpoint
from optipfair_engine.workflow.bias import BiasOptions, bias_checkpoint
from tests.tiny import byte_tokenizer, tiny_llama, write_checkpoint

TEXT = "Structured pruning removes whole neurons, so that the smaller model is faster on any machine. " * 40
POSITIONS = 64


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama of 64 positions with a tokenizer."""
    folder = tmp_path_factory.mktemp("users") / "model"
    tokenizer = byte_tokenizer([TEXT])
    sizes = {"intermediate_size": 96, "max_position_embeddings": POSITIONS}
    return write_checkpoint(folder, tiny_llama(vocab_size=len(tokenizer), **sizes), tokenizer)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("users") / "gpt2"
    GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4)).save_pretrained(folder)
    return folder


@pytest.fixture
def unloadable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever reads weights fails: what is refused was refused before."""

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("the model was loaded")

    for name in ("common.load_model", "prune.streamed.prune_streamed", "bias._ask"):
        monkeypatch.setattr(f"optipfair_engine.workflow.{name}", fail)
    monkeypatch.setattr("optipfair_engine.workflow.prune.checkpoint.prune_streamed", fail)


def asked(**options: Any) -> PruneOptions:
    return PruneOptions(**{"verify": "structure", "evaluation_max_length": 32, "max_length": 32, **options})


def codes(metrics: dict[str, Any]) -> list[str]:
    return [warning["code"] for warning in metrics["warnings"]]


def test_the_length_of_calibration_samples_leaves_the_dense_perplexity_alone(
    source: Path, tmp_path: Path
) -> None:
    found = [
        prune_checkpoint(
            source,
            tmp_path / str(length),
            asked(max_length=length, num_samples=16, evaluation_num_windows=4),
            calibration_texts=[TEXT],
            evaluation_texts=[TEXT],
        )
        for length in (8, 16)
    ]
    assert found[0]["perplexity_dense"] == found[1]["perplexity_dense"]
    for metrics in found:
        assert metrics["evaluation_max_length"] == 32
        assert metrics["evaluation_tokens"] == 31 * metrics["evaluation_windows"]


def test_a_dense_model_evaluated_alone_has_the_perplexity_that_its_pruning_reports(
    source: Path, tmp_path: Path
) -> None:
    options = asked(evaluation_num_windows=3)
    pruned = prune_checkpoint(source, tmp_path / "out", options, evaluation_texts=[TEXT])
    alone = evaluate_checkpoint(source, None, texts=[TEXT], max_length=32, num_windows=3)
    assert alone["perplexity"] == pruned["perplexity_dense"]
    for name in ("evaluation_max_length", "evaluation_windows", "evaluation_tokens"):
        assert alone[name] == pruned[name]
    assert alone["evaluation_windows"] == 3


@pytest.mark.parametrize("execution", ["streamed", "memory"])
def test_static_maw_warns_in_metrics_and_on_the_card(source: Path, tmp_path: Path, execution: Any) -> None:
    metrics = prune_checkpoint(source, tmp_path / "out", asked(execution=execution))
    assert codes(metrics) == ["not_calibrated"]
    assert metrics["loads_with_transformers"] == 1
    card = (tmp_path / "out" / "README.md").read_text()
    assert "## Warnings" in card and "No calibration was given" in card
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")


def test_removing_the_last_layers_warns_without_calibration(source: Path, tmp_path: Path) -> None:
    options = asked(pruning_type="DEPTH", num_layers_to_remove=1)
    (warning,) = prune_checkpoint(source, tmp_path / "out", options)["warnings"]
    assert warning["code"] == "not_calibrated" and "by their position alone" in warning["message"]


def test_the_warning_of_a_ruined_model_has_a_number_that_people_read() -> None:
    plan = PruningPlan(model_type="llama", num_layers=4, hidden_size=32)
    metrics = {"reduction": 1, "perplexity_ratio": 2664.7}
    (caution,) = cautions_of(plan, metrics, calibrated=True, loads_with_transformers=True)
    assert "is 2,665 times that" in caution.message


@pytest.mark.parametrize(("ratio", "told"), [(592.0, True), (math.inf, True), (math.nan, True), (1.9, False)])
def test_a_ruined_model_is_said_to_be_ruined(ratio: float, told: bool) -> None:
    plan = PruningPlan(model_type="llama", num_layers=4, hidden_size=32)
    metrics = {"reduction": 1, "perplexity_ratio": ratio}
    found = cautions_of(plan, metrics, calibrated=True, loads_with_transformers=True)
    assert ("perplexity_ratio_large" in [caution.code for caution in found]) is told


def test_the_preset_writes_what_plain_transformers_loads(source: Path, tmp_path: Path) -> None:
    options = asked(preset="recommended", pruning_percentage=20)
    metrics = prune_checkpoint(source, tmp_path / "out", options, calibration_texts=[TEXT])
    assert metrics["loads_with_transformers"] == 1
    assert metrics["predicted_error_allocated"] <= metrics["predicted_error_uniform"]
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert not any("--" in warning["message"] for warning in metrics["warnings"])


def test_naming_layers_says_before_it_starts_that_the_result_needs_load_pruned(
    source: Path, tmp_path: Path
) -> None:
    words = ["prune", "--model-path", source, "--output-path", tmp_path / "out", "--layer-indices", "1,2"]
    result = CliRunner().invoke(app, list(map(str, words)))
    said = " ".join(result.stderr.split())
    assert (
        said.startswith("Warning: only some layers are pruned") and "load_pruned" in said.split("Warning")[1]
    )
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["loads_with_transformers"] == 0
    assert "unequal_layers" in codes(metrics)


@pytest.mark.usefixtures("unloadable")
def test_windows_longer_than_the_models_positions_are_refused_unread(source: Path, tmp_path: Path) -> None:
    longer = POSITIONS + 1
    for options, texts in (
        (asked(max_length=longer), {"calibration_texts": [TEXT]}),
        (asked(evaluation_max_length=longer), {"evaluation_texts": [TEXT]}),
    ):
        with pytest.raises(InvalidOptionError, match=f"{POSITIONS} positions"):
            prune_checkpoint(source, tmp_path / "out", options, **texts)  # type: ignore[arg-type]
    with pytest.raises(InvalidOptionError, match=f"{POSITIONS} positions"):
        evaluate_checkpoint(source, None, texts=[TEXT], max_length=longer)
    with pytest.raises(InvalidOptionError, match=f"{POSITIONS} positions"):
        importance_checkpoint(source, None, texts=[TEXT], max_length=longer)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("unloadable")
@pytest.mark.parametrize(
    ("family", "options", "error", "said"),
    [
        ("source", {"pruning_type": "MLP"}, UnsupportedModelError, 'use pruning_type="MLP_GLU"'),
        ("gpt2", {"pruning_type": "MLP_GLU"}, UnsupportedModelError, 'use pruning_type="MLP"'),
        ("source", {"target_parameters": 10}, InvalidOptionError, "at least"),
        ("source", {"target_parameters": 10**12}, InvalidOptionError, "smaller target"),
        ("source", {"layer_indices": [0, 4]}, InvalidOptionError, "4 layers"),
        ("source", {"expansion_rate": 900}, InvalidOptionError, "make the model larger"),
        (
            "source",
            {"pruning_type": "DEPTH", "num_layers_to_remove": 4},
            InvalidOptionError,
            "at least one must stay",
        ),
    ],
)
def test_what_the_headers_rule_out_is_refused_before_the_model_is_loaded(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    family: str,
    options: dict[str, Any],
    error: type[Exception],
    said: str,
) -> None:
    with pytest.raises(error, match=said):
        prune_checkpoint(request.getfixturevalue(family), tmp_path / "out", asked(**options))


@pytest.mark.usefixtures("unloadable")
def test_figures_of_layers_that_are_not_there_are_refused_unread(source: Path, tmp_path: Path) -> None:
    options = BiasOptions(visualization_types=["heatmap"], layers=[0, 99])
    with pytest.raises(InvalidOptionError, match=r"99 were asked for; the model has 4 layers \(0 to 3\)"):
        bias_checkpoint(source, tmp_path / "out", options)


def test_a_streamed_run_draws_its_plots_and_its_manifest_knows_them(source: Path, tmp_path: Path) -> None:
    metrics = prune_checkpoint(source, tmp_path / "out", asked(pruning_percentage=50))
    assert metrics["execution"] == "streamed"
    files = json.loads((tmp_path / "out" / "optipfair_manifest.json").read_text())["files"]
    assert {"parameters.png", "kept_neurons.png"} <= set(files)


def test_kept_statistics_may_be_read_by_whoever_may_read_what_lies_beside(
    source: Path, tmp_path: Path
) -> None:
    options = asked(preset="recommended", keep_statistics=True)
    prune_checkpoint(source, tmp_path / "out", options, calibration_texts=[TEXT])
    modes = {
        name: stat.S_IMODE((tmp_path / "out" / name).stat().st_mode)
        for name in ("statistics.safetensors", "plan.json", "model.safetensors")
    }
    assert len(set(modes.values())) == 1, modes


def test_the_speedup_of_a_comparison_has_an_interval_for_gates(source: Path) -> None:
    metrics = evaluate_checkpoint(source, None, baseline=source, timing=True, max_new_tokens=2, num_runs=3)
    assert metrics["speedup_low"] <= metrics["speedup_high"]
