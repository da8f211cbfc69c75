"""What is said on the command line arrives at the engine, option by option."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from optipfair_engine.cli.app import app
from optipfair_engine.errors import EngineError
from optipfair_engine.options.calibration import ModelItself
from optipfair_engine.options.prune import PruneOptions, Reconstruction, Search
from optipfair_engine.workflow.bias import BiasOptions


class Stopped(EngineError):
    """The engine was called: the command need not go on."""


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Runs a command on an empty model folder; returns what the engine was called with."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    seen: dict[str, Any] = {}

    def record(*arguments: Any, **options: Any) -> None:
        for value in (*arguments, options):
            if isinstance(value, PruneOptions | BiasOptions):
                seen.update(vars(value))
                if isinstance(value, PruneOptions):
                    seen["healing_seconds"] = value.healing_seconds
        seen.update(options)
        raise Stopped("stopped")

    for place in (
        "workflow.prune_checkpoint",
        "workflow.importance_checkpoint",
        "workflow.evaluate_checkpoint",
        "workflow.bias.bias_checkpoint",
    ):
        monkeypatch.setattr(f"optipfair_engine.{place}", record)
    for module in ("prune", "inspect"):
        monkeypatch.setattr(f"optipfair_engine.cli.{module}.read_calibration", lambda *_, **options: options)

    def run(command: str, *words: str) -> dict[str, Any]:
        seen.clear()
        models = ["--before", "--after"] if command == "compare" else ["--model-path"]
        places = [word for option in models for word in (option, str(tmp_path / "model"))]
        if command != "evaluate":
            places += ["--output-path", str(tmp_path / "out")]
        result = CliRunner().invoke(app, [command, *places, *words])
        assert "Error: stopped" in result.stderr, result.output
        return seen

    return run


@pytest.mark.parametrize(
    ("name", "words", "value"),
    [
        ("preset", ["--preset", "recommended"], "recommended"),
        ("export", ["--export", "gguf"], "gguf"),
        ("pruning_type", ["--pruning-type", "ATTENTION"], "ATTENTION"),
        ("neuron_selection_method", ["--method", "VOW"], "VOW"),
        ("tie_break", ["--tie-break", "topk"], "topk"),
        ("layer_indices", ["--layer-indices", "2,5"], (2, 5)),
        ("layer_selection_method", ["--pruning-type", "DEPTH", "--layer-selection-method", "first"], "first"),
        ("num_layers_to_remove", ["--pruning-type", "DEPTH", "--num-layers-to-remove", "3"], 3),
        ("depth_pruning_percentage", ["--pruning-type", "DEPTH", "--pruning-percentage", "30"], 30.0),
        ("attention_unit", ["--pruning-type", "ATTENTION", "--attention-unit", "query_head"], "query_head"),
        ("compensation", ["--compensation", "least_squares"], "least_squares"),
        ("allocation", ["--allocation", "allocated"], "allocated"),
        ("pruning_percentage", ["--pruning-percentage", "35"], 35.0),
        ("expansion_rate", ["--expansion-rate", "150"], 150.0),
        ("expansion_divisor", ["--expansion-divisor", "64"], 64),
        ("target_parameters", ["--target-parameters", "1000"], 1000),
        ("target_bytes", ["--target-bytes", "2000"], 2000),
        ("keep_statistics", ["--keep-statistics"], True),
        ("healing_seconds", ["--healing-seconds", "5"], 5.0),
        ("reconstruction", ["--reconstruction-seconds", "5"], Reconstruction(max_seconds=5)),
        ("search", ["--allocation", "searched", "--search-seconds", "5"], Search(max_seconds=5)),
        ("calibration", ["--calibration-source", "model"], ModelItself(source="model")),
        ("calibration", ["--preset", "fast"], ModelItself(source="model")),
        ("num_samples", ["--preset", "fast", "--num-samples", "9"], 9),
        ("mix_self", ["--calibration", "text.txt", "--mix-self", "0.2"], 0.2),
        ("seed", ["--healing-seconds", "5", "--seed", "3"], 3),
        ("seed", ["--calibration-source", "model", "--seed", "3"], 3),
        ("verify", ["--verify", "none"], "none"),
        ("device", ["--device", "cuda:1"], "cuda:1"),
        ("dtype", ["--dtype", "float32"], "float32"),
        ("execution", ["--out-of-core"], "streamed"),
        ("plan", ["--plan", "earlier"], Path("earlier")),
        ("work", ["--work-dir", "state"], Path("state")),
        ("calibration_texts", ["--calibration", "text.txt", "--num-samples", "7"], {"num_samples": 7}),
        ("calibration_texts", ["--calibration", "text.txt", "--batch-size", "2"], {"batch_size": 2}),
        ("calibration_texts", ["--calibration", "text.txt", "--max-length", "99"], {"max_length": 99}),
    ],
)
def test_prune(called: Callable[..., dict[str, Any]], words: list[str], name: str, value: Any) -> None:
    default = called("prune")[name]
    found = called("prune", *words)[name]
    if isinstance(value, dict):
        found = {key: found[key] for key in value}
    assert found == value != default


@pytest.mark.parametrize(
    ("name", "words", "value"),
    [
        ("template", ["--template", "The {attribute} sat"], "The {attribute} sat"),
        ("attributes", ["--attributes", "cat, dog"], ["cat", "dog"]),
        ("suite", ["--suite", "crows.csv"], Path("crows.csv")),
        ("visualization_types", ["--visualization-types", "pca"], ["pca"]),
        ("visualization_types", ["--visualization-types", "none"], []),
        ("layers", ["--layers", "all"], "all"),
        ("layers", ["--layers", "0,2"], [0, 2]),
        ("layer_types", ["--layer-types", "mlp_output,up_proj"], ["mlp_output", "up_proj"]),
        ("figure_format", ["--figure-format", "svg"], "svg"),
        ("neuron_ranking", ["--neuron-ranking"], True),
        ("patching", ["--patching", "heads"], "heads"),
        ("seed", ["--seed", "4"], 4),
        ("dtype", ["--dtype", "float16"], "float16"),
        ("device", ["--device", "cuda:1"], "cuda:1"),
    ],
)
def test_bias_and_compare(
    called: Callable[..., dict[str, Any]], words: list[str], name: str, value: Any
) -> None:
    if name in ("template", "attributes"):
        words = ["--template", "The {attribute} sat", "--attributes", "cat, dog"]
    default = called("bias")[name]
    assert called("bias", *words)[name] == value != default
    if name in ("template", "attributes", "suite", "seed", "dtype", "device"):
        assert called("compare", *words)[name] == value


def test_a_baseline_and_its_margin(called: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    model = tmp_path / "model"
    seen = called("bias", "--baseline", str(model), "--margin", "0.3")
    assert (seen["baseline"], seen["margin"]) == (model, 0.3)
    assert called("compare", "--margin", "0.3")["margin"] == 0.3


def test_generation_is_asked_for_by_its_length(called: Callable[..., dict[str, Any]]) -> None:
    assert called("bias")["generation"] is None
    found = called("bias", "--generation-tokens", "12", "--generation-seed", "3")["generation"]
    assert (found.max_new_tokens, found.samples, found.seed) == (12, 4, 3)


def test_files_of_pairs(called: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text(json.dumps(["the man sat", "the woman sat"]) + "\n")
    for option, name in (("--prompt-pairs", "prompt_pairs"), ("--control-pairs", "control_pairs")):
        (pair,) = called("bias", option, str(file))[name]
        assert "the woman sat" in str(pair)
    seen = called("prune", "--fairness-pairs", str(file), "--fairness-weight", "0.5")
    assert (seen["fairness"].weight, seen["fairness"].by) == (0.5, "reaction")
    assert (
        called("prune", "--fairness-pairs", str(file), "--fairness-by", "effect")["fairness"].by == "effect"
    )
    assert "the woman sat" in str(seen["fairness"].prompt_pairs)


@pytest.mark.parametrize(
    ("command", "name", "words", "value"),
    [
        ("importance", "layers_path", ["--layers-path", "h"], "h"),
        ("importance", "dtype", ["--dtype", "float32"], "float32"),
        ("importance", "device", ["--device", "cuda:1"], "cuda:1"),
        ("evaluate", "timing", ["--timing"], True),
        ("evaluate", "prompts", ["--prompt", "a", "--prompt", "b"], ["a", "b"]),
        ("evaluate", "num_runs", ["--timing", "--num-runs", "9"], 9),
        ("evaluate", "warmup_runs", ["--timing", "--warmup-runs", "0"], 0),
        ("evaluate", "max_new_tokens", ["--prompt", "a", "--max-new-tokens", "8"], 8),
        ("evaluate", "max_length", ["--text", "TEXT", "--max-length", "64"], 64),
        ("evaluate", "num_windows", ["--text", "TEXT", "--num-windows", "3"], 3),
        ("evaluate", "dynamic", ["--timing", "--dynamic-keep", "70"], {"keep_percentage": 70.0}),
        ("evaluate", "dtype", ["--dtype", "float32"], "float32"),
        ("evaluate", "device", ["--device", "cuda:1"], "cuda:1"),
    ],
)
def test_importance_and_evaluate(
    called: Callable[..., dict[str, Any]],
    tmp_path: Path,
    command: str,
    words: list[str],
    name: str,
    value: Any,
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("some text")
    words = [str(text) if word == "TEXT" else word for word in words]
    base = ["--calibration", str(text)] if command == "importance" else []
    default = called(command, *base)[name]
    assert called(command, *base, *words)[name] == value != default
