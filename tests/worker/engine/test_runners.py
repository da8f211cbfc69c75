"""The translation of specs: same words on both sides, strict JSON out, pipelines flattened."""

from __future__ import annotations

import json
import shutil
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    T5Config,
    T5ForConditionalGeneration,
)

from jobs import specs
from jobs.specs.metrics import known_metrics
from optipfair_engine import workflow
from optipfair_engine.calibration import CalibrationSet
from optipfair_engine.cli.shared import read_calibration
from optipfair_engine.errors import CheckpointError
from optipfair_engine.options.prune import PruneOptions
from optipfair_engine.progress import null_reporter
from tests.reloading import in_this_process
from tests.tiny import tiny_llama, tiny_model, word_tokenizer, write_checkpoint
from worker.engine import runners, steps
from worker.inputs.places import InputNotFoundError, Inputs, Places


@pytest.fixture(autouse=True)
def check_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.engine.reload_check.forked_runner", in_this_process)


def inputs_under(root: Path, **places: object) -> Inputs:
    folders = {name: str(root / name) for name in ("models", "calibration", "suites", "hub_cache")}
    defaults = {"cache_bytes": 1000, "allow_hub": False}
    return Inputs(Places(**{**folders, **defaults, **places}), ExitStack(), null_reporter)


def test_every_option_of_a_prune_job_reaches_the_engine_or_the_call() -> None:
    references = {"model", "calibration", "evaluation", "plan", "layers_from"}
    assert set(specs.PruneSpec.model_fields) - references <= set(PruneOptions.model_fields)
    request = specs.parse_request(
        {
            "kind": "prune",
            "spec": {
                "model": {"source": "local", "name": "m"},
                "pruning_percentage": 20,
                "healing": {"max_seconds": 7},
                "verify": "structure",
                "layer_indices": [1, 2],
                "calibration": {"texts": ["a"], "max_length": 9, "num_samples": 3, "batch_size": 2},
                "evaluation": {"texts": ["b"], "max_length": 7, "num_windows": 5},
            },
        }
    )
    options = runners.prune_options(specs.spec_to_json(request.spec))
    assert options.healing_seconds == 7.0
    assert (options.max_length, options.num_samples, options.batch_size) == (9, 3, 2)
    assert (options.evaluation_max_length, options.evaluation_num_windows) == (7, 5)
    assert (options.pruning_percentage, options.verify) == (20, "structure")
    assert list(options.layer_indices or ()) == [1, 2]


def test_auto_devices_become_the_workers_in_every_step() -> None:
    spec = {"steps": [{"name": "a", "kind": "prune", "spec": {"device": "auto"}}], "device": "cpu"}
    assert runners.with_device(spec, "cuda") == {
        "steps": [{"name": "a", "kind": "prune", "spec": {"device": "cuda"}}],
        "device": "cpu",
    }


def test_a_pipelines_files_and_metrics_carry_their_steps_names(tmp_path: Path) -> None:
    for step in ("small", "check"):
        (tmp_path / "steps" / step / "plots").mkdir(parents=True)
        (tmp_path / "steps" / step / "metrics.json").write_text(step)
    (tmp_path / "steps" / "small" / "plots" / "a.png").write_text("png")
    steps.flatten_steps(tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["check.metrics.json", "small.metrics.json", "small.plots.a.png"]
    merged = steps.merge_metrics({"small": {"seconds": 1, "reduction": 2}, "check": {"seconds": 3}})
    assert merged == {"small.seconds": 1, "small.reduction": 2, "check.seconds": 3, "reduction": 2}


@pytest.mark.parametrize(
    ("reference", "code"),
    [
        ({"source": "local", "name": "absent"}, "model_not_found"),
        ({"source": "local", "name": "../../etc"}, "model_not_found"),
        ({"source": "hub", "id": "a/b", "revision": "0" * 40}, "hub_not_allowed"),
        ({"source": "job", "job_id": "unknown"}, "model_not_found"),
    ],
)
def test_models_that_may_not_be_used_are_users_errors(
    tmp_path: Path, reference: dict[str, str], code: str
) -> None:
    with pytest.raises(CheckpointError) as caught:
        inputs_under(tmp_path).model(reference)
    assert caught.value.code == code


def test_texts_come_from_the_spec_or_a_named_file(tmp_path: Path) -> None:
    (tmp_path / "calibration").mkdir()
    (tmp_path / "calibration" / "books.txt").write_text("from a file")
    inputs = inputs_under(tmp_path)
    assert inputs.texts(None) is None
    assert inputs.texts({"texts": ["given"]}) == ["given"]
    assert inputs.texts({"source": "local", "name": "books.txt"}) == ["from a file"]
    with pytest.raises(InputNotFoundError, match="no calibration file"):
        inputs.texts({"source": "local", "name": "other.txt"})


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of models: a tiny Llama and a mixture of experts, with a tokenizer of one token a word."""
    words = ["<unk>", "<eos>", "the", "male", "female", "nurse", "baker", "driver", "sat"]
    sizes = {"vocab_size": len(words), "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    root = tmp_path_factory.mktemp("root")
    tokenizer = word_tokenizer(words, unk_token="<unk>", eos_token="<eos>")
    write_checkpoint(root / "models" / "tiny", tiny_llama(**sizes, **heads, initializer_range=0.3), tokenizer)
    experts = {"num_local_experts": 4, "num_experts_per_tok": 1}
    write_checkpoint(
        root / "models" / "mixture", tiny_model("mixtral", **sizes, **heads, **experts), tokenizer
    )
    return root


def same(ours: CalibrationSet, theirs: CalibrationSet) -> bool:
    facts = replace(ours, batches=()) == replace(theirs, batches=())
    pairs = zip(ours.batches, theirs.batches, strict=True)
    return facts and all(torch.equal(a[key], b[key]) for a, b in pairs for key in a.keys() | b.keys())


@pytest.mark.parametrize("name", ["sentences.jsonl", "book.txt"])
def test_a_job_and_a_command_calibrate_alike_on_the_same_file(
    tiny: Path, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lines = ["the male nurse sat the baker sat the driver sat", "the driver sat", "the female baker sat"]
    (tiny / "calibration").mkdir(exist_ok=True)
    content = (
        "\n".join(json.dumps({"text": line}) for line in lines) if name.endswith("l") else " ".join(lines)
    )
    file = tiny / "calibration" / name
    file.write_text(content)
    model = tiny / "models" / "tiny"
    by_command = read_calibration(file, model, num_samples=5, batch_size=2, max_length=4)
    seen: list[CalibrationSet] = []
    monkeypatch.setattr(
        workflow, "prune_checkpoint", lambda *_, calibration_texts, **__: seen.append(calibration_texts) or {}
    )
    reference = {"source": "local", "name": name, "num_samples": 5, "batch_size": 2, "max_length": 4}
    spec = job(
        "prune",
        {"model": TINY, "pruning_percentage": 50, "compensation": "least_squares", "calibration": reference},
    )
    runners.run_prune(spec, tmp_path, inputs_under(tiny), null_reporter)
    assert by_command is not None
    if name.endswith(".jsonl"):
        assert by_command.num_samples == len(lines)  # and not one more for the end of the long line
    assert same(by_command, seen[0])


TINY = {"source": "local", "name": "tiny"}
MIXTURE = {"source": "local", "name": "mixture"}
PAIRS = [[f"the male {noun} sat", f"the female {noun} sat"] for noun in ("nurse", "baker", "driver")]


def job(kind: str, spec: dict[str, object]) -> dict[str, Any]:
    return specs.spec_to_json(specs.parse_request({"kind": kind, "spec": spec}).spec)


@pytest.mark.parametrize(("path", "layers"), [("encoder.block", 2), ("decoder.block", 3)])
def test_an_importance_job_names_the_stack_it_means(
    tiny: Path, tmp_path: Path, path: str, layers: int
) -> None:
    config = T5Config(
        vocab_size=9, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_decoder_layers=3, num_heads=2,
        decoder_start_token_id=0,
    )  # fmt: skip
    T5ForConditionalGeneration(config).save_pretrained(tmp_path / "models" / "stacks")
    for file in (tiny / "models" / "tiny").glob("tokenizer*"):
        shutil.copy(file, tmp_path / "models" / "stacks")
    spec = job(
        "importance",
        {
            "model": {"source": "local", "name": "stacks"},
            "calibration": {"texts": ["the male nurse sat"]},
            "layers_path": path,
        },
    )
    metrics = runners.run_importance(
        {**spec, "device": "cpu"}, tmp_path / "out", inputs_under(tmp_path), null_reporter
    )
    assert len(metrics["importance"]) == layers


def test_a_bias_job_without_figures_writes_metrics_and_report_only(tiny: Path, tmp_path: Path) -> None:
    (tiny / "suites").mkdir(exist_ok=True)
    (tiny / "suites" / "mine.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in PAIRS))
    stages: list[str] = []
    for name, prompts in (("given", {"prompt_pairs": PAIRS}), ("suite", {"suite": "mine.jsonl"})):
        spec = job("bias", {"model": TINY, "visualization_types": [], **prompts})
        (tmp_path / name).mkdir()
        metrics = runners.run_bias(
            spec, tmp_path / name, inputs_under(tiny), lambda stage, *_: stages.append(stage)
        )
        assert (metrics["pairs"], metrics["templates"]) == (3, 3)
        written = {path.name for path in (tmp_path / name).iterdir()}
        assert written == {"bias_metrics.json", "bias_summary.json", "metrics.json", "report.html"}
    assert set(stages) == {"load", "bias", "save"}


def test_a_pipeline_prunes_and_compares_bias_with_the_original(tiny: Path, tmp_path: Path) -> None:
    figures = {"visualization_types": ["mean_diff"], "layer_types": ["mlp_output"], "figure_format": "svg"}
    spec = job(
        "pipeline",
        {
            "steps": [
                {"name": "small", "kind": "prune", "spec": {"model": TINY, "pruning_percentage": 50}},
                {
                    "name": "fair",
                    "kind": "bias",
                    "spec": {
                        "model": {"source": "step", "name": "small"},
                        "baseline": TINY,
                        "prompt_pairs": PAIRS,
                        **figures,
                    },
                },
            ]
        },
    )
    metrics = runners.run_pipeline(spec, tmp_path, inputs_under(tiny), null_reporter)
    assert metrics["bias_change"] == metrics["fair.bias_change"] is not None
    assert metrics["bias_change_low"] <= metrics["bias_change"] <= metrics["bias_change_high"]
    assert metrics["outcome"] in ("better", "worse", "inconclusive")
    names = {path.name for path in tmp_path.iterdir()}
    assert {"fair.bias_metrics.json", "fair.report.html", "fair.mean_diff_mlp_output_pair2.svg"} <= names
    report = (tmp_path / "fair.report.html").read_text()
    assert "Bias of step small, compared with tiny" in report


TEXTS = {"texts": ["the male nurse sat the baker sat", "the driver sat", "the female baker sat"]}
CROWS = "sent_more,sent_less,stereo_antistereo,bias_type\n" + "".join(
    f"{pair[0]},{pair[1]},stereo,gender\n" for pair in PAIRS
)
STEREO = {
    "type": "intrasentence", "target": "nurse", "bias_type": "gender", "context": "the BLANK nurse sat",
    "stereotype": "the female nurse sat", "anti-stereotype": "the male nurse sat",
    "unrelated": "the the nurse sat",
}  # fmt: skip
REFITTED = {"calibration": {**TEXTS, "max_length": 8}, "compensation": "least_squares"}
REPORTING: dict[str, list[dict[str, Any]]] = {
    "analyze": [{}],
    "importance": [{"calibration": TEXTS}],
    "prune": [
        {
            **REFITTED,
            "pruning_percentage": 50,
            "evaluation": TEXTS,
            "healing": {"max_seconds": 1},
            "fairness": {"prompt_pairs": PAIRS, "by": "effect"},
        },
        {
            "preset": "recommended",
            "calibration": {"source": "model", "num_samples": 16, "max_length": 8},
            "pruning_percentage": 50,
            "reconstruction": {"max_seconds": 5},
        },
        {"pruning_type": "DEPTH", "num_layers_to_remove": 1},
        {"model": MIXTURE, "pruning_type": "EXPERTS", "pruning_percentage": 50, "calibration": TEXTS},
    ],
    "bias": [
        {
            "prompt_pairs": PAIRS,
            "control_pairs": PAIRS,
            "neuron_ranking": True,
            "baseline": TINY,
            "patching": "layers",
            "generation": {"max_new_tokens": 2, "samples": 2},
        },
        {"suite": "crows.csv", "baseline": TINY},
        {"suite": "stereo.jsonl", "baseline": TINY},
    ],
    "evaluate": [
        {"text": TEXTS, "baseline": TINY, "prompts": ["the nurse"], "timing": True, "max_new_tokens": 2},
        {
            "text": {"texts": ["the male nurse sat the baker sat " * 6], "max_length": 32},
            "baseline": TINY,
            "timing": True,
            "max_new_tokens": 2,
            "dynamic": {"keep_percentage": 50},
        },
    ],
}


@pytest.mark.parametrize("kind", REPORTING)
def test_every_number_that_a_job_reports_can_have_a_gate_and_no_other(
    tiny: Path, tmp_path: Path, kind: str
) -> None:
    (tiny / "suites").mkdir(exist_ok=True)
    (tiny / "suites" / "crows.csv").write_text(CROWS)
    (tiny / "suites" / "stereo.jsonl").write_text(json.dumps(STEREO) + "\n")
    reported: set[str] = set()
    for number, spec in enumerate(REPORTING[kind]):
        quiet = {"visualization_types": []} if kind == "bias" else {}
        folder = tmp_path / str(number)
        folder.mkdir()
        full = runners.with_device(job(kind, {"model": TINY, **quiet, **spec}), "cpu")
        metrics = runners.RUNNERS[kind](full, folder, inputs_under(tiny), null_reporter)
        reported |= {name for name, value in metrics.items() if not isinstance(value, str | list | dict)}
    ends = {name for name in reported if name.removesuffix("_low").removesuffix("_high") != name}
    words = {"width_refusal", "mlp_kind"}  # null for a model that has neither
    named = {"reload_check"} if kind == "prune" else set()  # a word that gates read as a number
    assert reported - ends - words | named == known_metrics(kind)


def test_a_named_suite_is_fetched_where_that_is_allowed_and_no_where_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr("worker.inputs.places.fetch_suite", lambda entry, *_, **__: asked.append(entry.name))
    inputs = inputs_under(tmp_path)
    (tmp_path / "suites" / "stereoset").mkdir(parents=True)
    (tmp_path / "suites" / "stereoset" / "stereoset.jsonl").write_text("here already")
    assert inputs.suites(["crows_pairs", "stereoset"]) == tmp_path / "suites" and not asked
    inputs.places = replace(inputs.places, allow_hub=True)
    inputs.suites(["crows_pairs", "stereoset"])
    assert asked == ["crows_pairs"]
