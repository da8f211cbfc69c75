"""An evaluation that measures dynamic pruning: its figures, beside a baseline, and what it says of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from optipfair_engine.checkpoints import load_model, load_tokenizer
from optipfair_engine.cli.app import app
from optipfair_engine.errors import InvalidOptionError, UnsupportedModelError
from optipfair_engine.evaluation.continuation import continuation_perplexity
from optipfair_engine.evaluation.perplexity import text_windows
from optipfair_engine.pruning.dynamic import dynamic_pruning
from optipfair_engine.workflow import evaluate_checkpoint
from tests.tiny import byte_tokenizer, tiny_llama, tiny_model, write_checkpoint

TEXT = "Structured pruning removes whole neurons, so that the smaller model is faster on any machine. " * 12
LONG = "Each prompt chooses the neurons that what follows it is computed with, and no others."
QUICK: dict[str, Any] = {
    "max_length": 64,
    "num_windows": 3,
    "max_new_tokens": 3,
    "num_runs": 1,
    "warmup_runs": 0,
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model, one with half of its neurons that knows nothing of next tokens, and two that are refused."""
    root, tokenizer = tmp_path_factory.mktemp("dynamic"), byte_tokenizer([TEXT])
    ends = {"vocab_size": len(tokenizer), "bos_token_id": 1, "eos_token_id": 1, "initializer_range": 0.3}
    made = {
        "whole": tiny_llama(**ends),
        "half": tiny_llama(**{**ends, "initializer_range": 0.001}, intermediate_size=24),
        "mixture": tiny_model("mixtral", num_local_experts=2, num_experts_per_tok=1, **ends),
        "bert": tiny_model("bert", vocab_size=len(tokenizer), is_decoder=True),
    }
    return {name: write_checkpoint(root / name, model, tokenizer) for name, model in made.items()}


def test_dynamic_pruning_is_measured_beside_the_dense_model_and_a_baseline(
    models: dict[str, Path], tmp_path: Path
) -> None:
    metrics = evaluate_checkpoint(
        models["whole"],
        tmp_path / "out",
        baseline=models["half"],
        texts=[TEXT],
        prompts=[LONG],
        timing=True,
        dynamic={"keep_percentage": 50},
        **QUICK,
    )
    model, tokenizer = load_model(models["whole"]), load_tokenizer(models["whole"])
    windows = text_windows(tokenizer, [TEXT], 64, 3)
    assert metrics["dynamic_perplexity_dense"] == pytest.approx(continuation_perplexity(model, windows))
    with dynamic_pruning(model, 50) as state:
        pruned = continuation_perplexity(model, windows, following=state.continuation)
    assert metrics["dynamic_perplexity"] == pytest.approx(pruned)
    assert pruned != pytest.approx(metrics["dynamic_perplexity_dense"], rel=1e-3)
    assert metrics["dynamic_perplexity_ratio"] == pruned / metrics["dynamic_perplexity_dense"]
    assert metrics["dynamic_windows"] == len(windows) == metrics["evaluation_windows"]
    half = sum(p.numel() for p in load_model(models["half"]).parameters())
    assert metrics["dynamic_active_parameters"] == metrics["dynamic_parameters_baseline"] == half
    fast, slow = metrics["dynamic_tokens_per_second"], metrics["dynamic_tokens_per_second_dense"]
    assert metrics["dynamic_tokens_per_second_ratio"] == fast / slow
    assert metrics["dynamic_tokens_per_second_baseline"] > 0
    assert metrics["dynamic"] == {"keep_percentage": 50, "prompt_tokens": 32, "selection": "prompt"}
    assert set(metrics["generations"][0]) == {"prompt", "text", "text_dynamic", "text_baseline"}
    assert json.loads((tmp_path / "out/metrics.json").read_text())["dynamic_perplexity"] == pruned
    assert {"dynamic_perplexity.png", "dynamic_tokens_per_second.png"} <= {
        file.name for file in (tmp_path / "out").iterdir()
    }


def codes(metrics: dict[str, Any]) -> list[str]:
    return [warning["code"] for warning in metrics.get("warnings", ())]


def test_whoever_has_a_better_baseline_of_the_same_size_is_told_and_no_one_else(
    models: dict[str, Path],
) -> None:
    """A model that says next to nothing of the next token is better than one that is sure of wrong ones."""
    options: dict[str, Any] = {"texts": [TEXT], "dynamic": {"keep_percentage": 50}, **QUICK}
    behind = evaluate_checkpoint(models["whole"], None, baseline=models["half"], **options)
    assert codes(behind) == ["dynamic_behind_baseline"]
    assert "use the baseline instead" in behind["warnings"][0]["message"]
    larger = evaluate_checkpoint(models["half"], None, baseline=models["whole"], **options)
    assert codes(larger) == ["dynamic_sizes_differ"]
    assert f"{larger['dynamic_active_parameters']:,}" in larger["warnings"][0]["message"]
    whole = {**options, "dynamic": {"keep_percentage": 99.9}}  # of 48 neurons that is every one
    itself = evaluate_checkpoint(models["whole"], None, baseline=models["whole"], **whole)
    assert itself["dynamic_perplexity"] == pytest.approx(itself["dynamic_perplexity_baseline"])
    assert codes(itself) == []


def test_windows_too_short_to_choose_by_are_left_out_and_that_is_said(models: dict[str, Path]) -> None:
    options: dict[str, Any] = {"dynamic": {"keep_percentage": 50}, **QUICK}
    mixed = evaluate_checkpoint(models["whole"], None, texts=[TEXT, "Short."], **options)
    assert mixed["dynamic_windows"] == mixed["evaluation_windows"] - 1
    assert codes(mixed) == ["dynamic_windows_short"]
    with pytest.raises(InvalidOptionError, match="no window of the text has 32 tokens"):
        evaluate_checkpoint(models["whole"], None, texts=["Short."], **options)


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"texts": [TEXT], "max_length": 31}, "max_length of at least 32"),
        ({"timing": True, "max_new_tokens": 1}, "max_new_tokens of at least 2"),
        ({"prompts": [LONG, "Paris"]}, r"prompt 2 has \d tokens, .* at least 16"),
        ({"timing": True, "dynamic": {"keep_percentage": 100}}, "above 0 and below 100, got 100"),
        ({}, "nothing to evaluate"),
    ],
)
def test_what_would_measure_nothing_is_refused(
    models: dict[str, Path], asked: dict[str, Any], reason: str
) -> None:
    options = {"dynamic": {"keep_percentage": 50}, **QUICK, **asked}
    with pytest.raises(InvalidOptionError, match=reason):
        evaluate_checkpoint(models["whole"], None, **options)


@pytest.mark.parametrize(
    ("name", "reason"),
    [("mixture", "neurons of layer 0 can't be removed"), ("bert", "predict no next token")],
)
def test_models_that_it_is_nothing_for_are_refused(models: dict[str, Path], name: str, reason: str) -> None:
    with pytest.raises(UnsupportedModelError, match=reason):
        evaluate_checkpoint(models[name], None, timing=True, dynamic={"keep_percentage": 50}, **QUICK)


def test_the_command_shows_it_and_times_prompts_long_enough_without_any(models: dict[str, Path]) -> None:
    words = ["--timing", "--dynamic-keep", "50", "--max-new-tokens", "2", "--num-runs", "1", "--quiet"]
    result = CliRunner().invoke(app, ["evaluate", "--model-path", str(models["whole"]), *words])
    assert result.exit_code == 0, result.output
    assert "Dynamic tokens per second ratio" in result.stdout and "Dynamic active parameters" in result.stdout
    wrong = CliRunner().invoke(
        app, ["evaluate", "--model-path", str(models["whole"]), "--timing", "--dynamic-keep", "0"]
    )
    assert wrong.exit_code == 2 and "keep_percentage must be above 0 and below 100" in wrong.stderr
