"""What a user finds in a folder after running a command into it for the second time."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from optipfair_engine.checkpoints.written import RECORD_NAME
from optipfair_engine.cli.app import app
from tests.tiny import byte_tokenizer, tiny_llama, write_checkpoint

TEXT = "Structured pruning removes whole neurons, so that the smaller model is faster on any machine. " * 12


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("outputs") / "model"
    tokenizer = byte_tokenizer([TEXT])
    return write_checkpoint(folder, tiny_llama(vocab_size=len(tokenizer), intermediate_size=96), tokenizer)


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(part) for part in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, " ".join(result.stderr.split())


def prune(source: Path, output: Path, *options: object) -> tuple[int, str]:
    return run("prune", "--model-path", source, "--output-path", output, "--quiet", *options)


@pytest.fixture
def used(source: Path, tmp_path: Path) -> Path:
    """A pruned model, with what its user put beside it."""
    output = tmp_path / "out"
    assert prune(source, output, "--layer-indices", "1")[0] == 0
    (output / "evals").mkdir()
    (output / "evals" / "mmlu.json").write_text("{}")
    (output / "NOTES.md").write_text("mine")
    return output


def kept(output: Path) -> bool:
    return (output / "NOTES.md").read_text() == "mine" and (output / "evals/mmlu.json").read_text() == "{}"


def test_pruning_into_a_used_folder_again_is_refused(source: Path, used: Path) -> None:
    before = (used / "model.safetensors").read_bytes()
    code, err = prune(source, used)
    assert code == 2 and "--overwrite" in err
    assert (used / "model.safetensors").read_bytes() == before
    assert kept(used)


def test_overwriting_replaces_what_the_earlier_run_wrote_and_keeps_notes_and_evals(
    source: Path, used: Path
) -> None:
    depth = ("--pruning-type", "DEPTH", "--num-layers-to-remove", 1)
    assert prune(source, used, *depth, "--overwrite")[0] == 0
    assert json.loads((used / "config.json").read_text())["num_hidden_layers"] == 3
    assert not (used / "kept_neurons.png").exists()
    assert kept(used)
    written = json.loads((used / RECORD_NAME).read_text())
    assert "NOTES.md" not in written["files"] and "model.safetensors" in written["files"]
    for name, entry in written["files"].items():
        assert hashlib.sha256((used / name).read_bytes()).hexdigest() == entry["sha256"], name
    assert [path.name for path in used.parent.iterdir()] == ["out"]
    assert not any(path.name.startswith(".") for path in used.iterdir())


def test_a_bias_analysis_into_a_pruned_models_folder_leaves_its_metrics(used: Path) -> None:
    before = (used / "metrics.json").read_bytes()
    code, err = run("bias", "--model-path", used, "--output-path", used, "--quiet")
    assert code == 2 and "the model itself" in err
    assert (used / "metrics.json").read_bytes() == before


@pytest.mark.parametrize("command", ["analyze", "evaluate", "importance", "bias", "prune"])
def test_no_command_writes_into_a_folder_of_someone_elses(source: Path, tmp_path: Path, command: str) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "metrics.json").write_text("years")
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    more = {"evaluate": ["--text", text], "importance": ["--calibration", text]}.get(command, [])
    words = [command, "--model-path", source, "--output-path", tmp_path / "mine", "--overwrite", *more]
    code, err = run(*words)
    assert code == 2 and "not empty" in err
    assert (tmp_path / "mine" / "metrics.json").read_text() == "years"


def test_a_model_card_that_was_edited_is_not_overwritten(source: Path, used: Path) -> None:
    (used / "README.md").write_text("my own words")
    code, err = prune(source, used, "--overwrite")
    assert code == 2 and "README.md changed" in err
    assert (used / "README.md").read_text() == "my own words"


def test_a_file_of_ones_own_under_a_new_results_name_stays_and_the_result_is_kept_too(
    source: Path, used: Path
) -> None:
    (used / "kept_layers.png").write_text("mine")
    depth = ("--pruning-type", "DEPTH", "--num-layers-to-remove", 1)
    code, err = prune(source, used, *depth, "--overwrite")
    assert code == 2 and "kept_layers.png" in err
    assert (used / "kept_layers.png").read_text() == "mine"
    assert json.loads((used / "config.json").read_text())["num_hidden_layers"] == 4
    (saved,) = used.parent.glob("out-*")
    assert json.loads((saved / "config.json").read_text())["num_hidden_layers"] == 3


def test_analyses_may_be_repeated_into_their_folder_when_asked(source: Path, tmp_path: Path) -> None:
    words = ("analyze", "--model-path", source, "--output-path", tmp_path / "out", "--quiet")
    assert run(*words)[0] == 0
    assert run(*words)[0] == 2
    assert run(*words, "--overwrite")[0] == 0


def test_a_bias_analysis_that_fails_leaves_no_folder(source: Path, tmp_path: Path) -> None:
    words = ("bias", "--model-path", source, "--output-path", tmp_path / "out", "--layers", "0,99")
    assert run(*words)[0] != 0
    assert list(tmp_path.iterdir()) == []


def test_the_demo_model_asked_for_in_another_models_folder_is_refused(used: Path) -> None:
    before = (used / "model.safetensors").read_bytes()
    code, err = run("demo-model", used)
    assert code == 2 and "holds an earlier result" in err
    assert (used / "model.safetensors").read_bytes() == before


def test_a_results_folder_of_an_earlier_version_is_known_by_its_manifest(source: Path, used: Path) -> None:
    (used / RECORD_NAME).unlink()
    (used / "metrics.json").write_text("{}")
    assert prune(source, used, "--overwrite")[0] == 0
    assert kept(used)
