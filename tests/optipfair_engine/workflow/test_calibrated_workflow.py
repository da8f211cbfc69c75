"""From folder to folder with calibration: what the metrics, the plan and the artifacts say."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from optipfair_engine import PruningPlan, load_pruned
from optipfair_engine.calibration.statistics import GramStatistics
from optipfair_engine.errors import InvalidOptionError, ModelTooLargeError, PlanError, UnsupportedModelError
from optipfair_engine.options.prune import PruneOptions
from optipfair_engine.workflow import prune_checkpoint
from tests.tiny import byte_tokenizer, tiny_llama, write_checkpoint

TEXT = "Structured pruning removes whole neurons, so that the smaller model is faster on any machine. " * 12


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("calibrated") / "model"
    tokenizer = byte_tokenizer([TEXT])
    sizes = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 6}
    model = tiny_llama(vocab_size=len(tokenizer), **sizes, initializer_range=0.2)
    return write_checkpoint(folder, model, tokenizer)


def _options(**changes: object) -> PruneOptions:
    base: dict[str, object] = {
        "preset": "recommended",
        "pruning_percentage": 25,
        "max_length": 16,
        "num_samples": 16,
        "verify": "structure",
    }
    return PruneOptions(**{**base, **changes})  # type: ignore[arg-type]


def test_recommended_says_its_calibration_and_beats_static(source: Path, tmp_path: Path) -> None:
    metrics = prune_checkpoint(
        source,
        tmp_path / "out",
        _options(keep_statistics=True),
        calibration_texts=[TEXT],
        evaluation_texts=[TEXT],
    )
    assert metrics["calibration_source"] == "texts"
    assert metrics["calibration_tokens"] > 0
    assert any("calibration is small" in warning["message"] for warning in metrics["warnings"])
    assert any("one narrow text" in warning["message"] for warning in metrics["warnings"])
    assert {"perplexity_dense", "perplexity_pruned", "perplexity_static_same_size"} <= set(metrics)
    plan = PruningPlan.load(tmp_path / "out")
    assert plan.curves is not None
    assert {len(curve) for curve in plan.curves.values()} == {49}
    assert sorted(GramStatistics.load(tmp_path / "out").fit) == [0, 1, 2]
    assert (tmp_path / "out" / "error_curves.png").exists()
    load_pruned(tmp_path / "out")


@pytest.mark.parametrize("execution", ["memory", "streamed"])
def test_without_text_the_model_writes_it_and_the_result_says_so(
    source: Path, tmp_path: Path, execution: str
) -> None:
    said: list[str] = []
    metrics = prune_checkpoint(
        source,
        tmp_path / "out",
        _options(execution=execution, num_samples=8),
        report=lambda stage, *_: said.append(stage),
    )
    assert "generate" in said
    assert metrics["calibration_own_samples"] == 8
    assert "self_calibrated" in [warning["code"] for warning in metrics["warnings"]]
    assert "not_calibrated" not in [warning["code"] for warning in metrics["warnings"]]
    facts = PruningPlan.load(tmp_path / "out").provenance.calibration
    assert facts is not None
    assert facts.source == "text that the model wrote itself"
    assert facts.source in (tmp_path / "out" / "README.md").read_text()
    load_pruned(tmp_path / "out")


@pytest.mark.parametrize("execution", ["memory", "streamed"])
def test_reconstruction_is_reported_layer_by_layer(source: Path, tmp_path: Path, execution: str) -> None:
    said: list[tuple[str, int, int]] = []
    metrics = prune_checkpoint(
        source,
        tmp_path / "out",
        _options(execution=execution, num_samples=64, reconstruction={"max_seconds": 30.0}),
        calibration_texts=[TEXT * 4],
        report=lambda stage, done, total, _: said.append((stage, done, total)),
    )
    assert [step for step in said if step[0] == "reconstruct"] == [("reconstruct", i, 3) for i in (1, 2, 3)]
    assert metrics["reconstruction_layers"] > 0
    assert metrics["reconstruction_error_after"] < metrics["reconstruction_error_before"]
    made = PruningPlan.load(tmp_path / "out").provenance
    assert len(made.reconstructed_layers or ()) == metrics["reconstruction_layers"]
    assert "reconstructed layers" in (tmp_path / "out" / "README.md").read_text().replace("_", " ")
    load_pruned(tmp_path / "out")


def test_a_share_of_own_text_comes_beside_the_users(source: Path, tmp_path: Path) -> None:
    metrics = prune_checkpoint(
        source, tmp_path / "out", _options(mix_self=0.25, num_samples=12), calibration_texts=[TEXT]
    )
    facts = PruningPlan.load(tmp_path / "out").provenance.calibration
    assert facts is not None
    assert (facts.samples, facts.own_samples) == (16, 4)
    assert facts.source == "texts, and text that the model wrote itself"
    codes = [warning["code"] for warning in metrics["warnings"]]
    assert "self_calibrated" not in codes
    assert not any("one narrow text" in warning["message"] for warning in metrics["warnings"])


def test_own_text_is_refused_where_it_cannot_be_had(source: Path, tmp_path: Path) -> None:
    small = {"memory_limit": 2_000}
    with pytest.raises(ModelTooLargeError, match="writes itself needs all of it"):
        prune_checkpoint(source, tmp_path / "out", _options(execution="streamed"), **small)
    with pytest.raises(InvalidOptionError, match="the model writes all of the text"):
        own = _options(calibration={"source": "model"})
        prune_checkpoint(source, tmp_path / "out", own, calibration_texts=[TEXT])
    config = json.loads((source / "config.json").read_text())
    shutil.copytree(source, tmp_path / "bert")
    (tmp_path / "bert" / "config.json").write_text(json.dumps({**config, "model_type": "bert"}))
    with pytest.raises(UnsupportedModelError, match="'bert' predict no next token"):
        prune_checkpoint(tmp_path / "bert", tmp_path / "out", _options(pruning_type="MLP"))
    assert not (tmp_path / "out").exists()


def test_healing_reports_before_and_after(source: Path, tmp_path: Path) -> None:
    said: list[str] = []
    metrics = prune_checkpoint(
        source,
        tmp_path / "out",
        _options(healing={"max_seconds": 1.0}),
        calibration_texts=[TEXT],
        evaluation_texts=[TEXT],
        report=lambda stage, *_: said.append(stage),
    )
    assert metrics["healing_steps"] > 0
    assert metrics["perplexity_pruned"] != metrics["perplexity_before_healing"]
    assert "heal" in said


def test_healing_without_calibration_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(InvalidOptionError, match="healing needs calibration"):
        prune_checkpoint(
            tmp_path / "none",
            tmp_path / "out",
            _options(preset="guide", healing={"max_seconds": 1.0}, verify="logits"),
        )


@pytest.mark.parametrize(
    "options",
    [
        {"pruning_type": "ATTENTION", "pruning_percentage": 50},
        {"pruning_type": "DEPTH", "pruning_percentage": None, "num_layers_to_remove": 1},
        {"neuron_selection_method": "L2"},
    ],
)
def test_calibration_may_be_for_healing_alone(
    source: Path, tmp_path: Path, options: dict[str, object]
) -> None:
    asked = _options(preset="guide", healing={"max_seconds": 0.5}, **options)
    metrics = prune_checkpoint(source, tmp_path / "out", asked, calibration_texts=[TEXT])
    assert metrics["healing_steps"] > 0
    assert PruningPlan.load(tmp_path / "out").provenance.calibration is None


def test_a_model_without_perplexity_is_refused_before_it_is_calibrated(source: Path, tmp_path: Path) -> None:
    headless = tmp_path / "headless"
    LlamaForCausalLM.from_pretrained(source).model.save_pretrained(headless)
    PreTrainedTokenizerFast.from_pretrained(source).save_pretrained(headless)
    stages: list[str] = []
    with pytest.raises(UnsupportedModelError, match="no perplexity"):
        prune_checkpoint(
            headless,
            tmp_path / "out",
            _options(),
            calibration_texts=[TEXT],
            evaluation_texts=[TEXT],
            report=lambda stage, *_: stages.append(stage),
        )
    assert set(stages) == {"load"}


@pytest.mark.parametrize(
    "options",
    [
        {"pruning_type": "ATTENTION", "pruning_percentage": 34},
        {"pruning_type": "DEPTH", "pruning_percentage": None, "num_layers_to_remove": 1},
    ],
)
def test_attention_and_depth_have_a_static_yardstick(
    source: Path, tmp_path: Path, options: dict[str, object]
) -> None:
    metrics = prune_checkpoint(
        source, tmp_path / "out", _options(**options), calibration_texts=[TEXT], evaluation_texts=[TEXT]
    )
    assert metrics["perplexity_static_same_size"] > 0
    assert metrics["calibration_tokens"] > 0
    load_pruned(tmp_path / "out")


def test_the_same_spec_gives_the_same_plan_bytes(source: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        prune_checkpoint(source, tmp_path / name, _options(), calibration_texts=[TEXT])
    for file in ("plan.json", "plan.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_another_ratio_from_a_run_that_kept_its_statistics(source: Path, tmp_path: Path) -> None:
    kept = _options(keep_statistics=True, allocation="uniform", compensation="least_squares")
    prune_checkpoint(source, tmp_path / "first", kept, calibration_texts=[TEXT])
    metrics = prune_checkpoint(
        source, tmp_path / "second", _options(preset="guide", pruning_percentage=50), plan=tmp_path / "first"
    )
    plan = PruningPlan.load(tmp_path / "second")
    assert sum(len(kept) for kept in plan.kept_neurons.values()) == 3 * 24
    assert plan.provenance.compensation == "least_squares"
    assert metrics["calibration_tokens"] > 0
    load_pruned(tmp_path / "second")


def test_another_ratio_is_planned_on_mapped_weights(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prune_checkpoint(source, tmp_path / "first", _options(preset="guide"), calibration_texts=[TEXT])

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("optipfair_engine.checkpoints.load_model", fail)
    asked = PruneOptions(pruning_percentage=50, verify="structure")
    prune_checkpoint(source, tmp_path / "second", asked, plan=tmp_path / "first")
    plan = PruningPlan.load(tmp_path / "second")
    assert {len(kept) for kept in plan.kept_neurons.values()} == {24}
    assert plan.provenance.data_driven is True


def test_calibration_beside_a_plan_is_refused(source: Path, tmp_path: Path) -> None:
    prune_checkpoint(source, tmp_path / "first", PruneOptions(pruning_percentage=25, verify="structure"))
    with pytest.raises(InvalidOptionError, match="only for healing"):
        prune_checkpoint(
            source, tmp_path / "second", PruneOptions(), plan=tmp_path / "first", calibration_texts=[TEXT]
        )


def test_another_ratio_without_statistics_says_what_is_missing(source: Path, tmp_path: Path) -> None:
    prune_checkpoint(source, tmp_path / "first", _options(), calibration_texts=[TEXT])
    with pytest.raises(PlanError, match="keep_statistics"):
        prune_checkpoint(
            source,
            tmp_path / "second",
            _options(preset="guide", pruning_percentage=50),
            plan=tmp_path / "first",
        )
