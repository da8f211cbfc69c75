"""The ``optipfair`` command: options, exit codes, messages, output."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    T5Config,
    T5ForConditionalGeneration,
)
from typer.testing import CliRunner

from optipfair_engine.cli.app import app
from optipfair_engine.cli.terminal import _Lines, formatted
from optipfair_engine.errors import CheckpointError
from tests.tiny import tiny_llama, write_checkpoint


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = tiny_llama(intermediate_size=96, bos_token_id=1, eos_token_id=1)
    return write_checkpoint(tmp_path_factory.mktemp("cli") / "model", model)


def run(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(part) for part in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def prune(source: Path, output: Path, *options: object) -> tuple[int, str, str]:
    return run("prune", "--model-path", source, "--output-path", output, *options)


def test_help_names_every_command_and_loads_no_torch() -> None:
    code = (
        "import sys; from optipfair_engine.cli.app import main; sys.argv = ['optipfair', '--help']\n"
        "try:\n    main()\n"
        "finally:\n    print(sorted({'torch', 'transformers', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for command in ("prune", "analyze", "importance", "evaluate", "demo-model"):
        assert command in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


def test_json_is_the_only_thing_on_stdout(source: Path, tmp_path: Path) -> None:
    code, out, err = prune(source, tmp_path / "out", "--pruning-percentage", 25, "--json")
    assert code == 0
    metrics = json.loads(out)
    assert metrics["pruned_parameters"] == metrics["original_parameters"] - 4 * 24 * 3 * 32
    assert "Pruning: 4/4" in err


def test_quiet_says_nothing_but_warnings_on_stderr(source: Path, tmp_path: Path) -> None:
    code, out, err = prune(source, tmp_path / "out", "--quiet")
    assert code == 0
    assert err.startswith("Warning: no calibration was given") and len(err.splitlines()) == 1
    assert "Parameters after" in out


def test_depth_takes_a_percentage_on_the_command_line(source: Path, tmp_path: Path) -> None:
    code, out, _ = prune(
        source, tmp_path / "out", "--pruning-type", "DEPTH", "--pruning-percentage", 50, "--json"
    )
    assert code == 0
    assert json.loads(out)["final_layer_count"] == 2


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--pruning-percentage", "20", "--expansion-rate", "200"], "mutually exclusive"),
        (["--pruning-percentage", "100"], "below 100"),
        (["--method", "XXX"], "XXX"),
        (["--expansion-divisor", "48"], "48"),
        (["--layer-indices", "1,x"], "comma-separated integers"),
        (["--layer-indices", "1,99"], "Invalid layer indices: [99]"),
        (["--layer-indices", ""], "cannot be an empty list"),
        (["--num-layers-to-remove", "2"], "can't be used with pruning_type MLP_GLU"),
        (["--pruning-type", "DEPTH"], "Must specify one of"),
        (["--pruning-type", "DEPTH", "--method", "VOW", "--num-layers-to-remove", "1"], "can't be used"),
        (["--method", "CFSP"], "needs calibration"),
        (["--device", "cuda:7"], "cuda:7"),
        (["--nonsense"], "nonsense"),
    ],
)
def test_wrong_options_exit_with_2_and_leave_nothing_behind(
    source: Path, tmp_path: Path, options: list[str], text: str
) -> None:
    code, out, err = prune(source, tmp_path / "out", *options)
    assert code == 2
    assert text in " ".join(err.split())
    assert "Traceback" not in err and out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("option", "needs"),
    [
        ("--num-samples", "--calibration"),
        ("--batch-size", "--calibration"),
        ("--max-length", "--calibration"),
        ("--seed", "--healing-seconds"),
    ],
)
def test_an_option_that_nothing_would_read_is_refused(
    source: Path, tmp_path: Path, option: str, needs: str
) -> None:
    code, _, err = prune(source, tmp_path / "out", option, "4")
    assert code == 2
    assert f"{option} has no effect without {needs}" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "needs"),
    [
        (["evaluate", "--prompt", "a", "--num-runs", "4"], "--num-runs has no effect without --timing"),
        (["evaluate", "--prompt", "a", "--num-windows", "4"], "--num-windows has no effect without --text"),
        (["evaluate", "--timing", "--max-length", "64"], "--max-length has no effect without --text"),
        (["bias", "--margin", "0.1", "--output-path", "out"], "--margin has no effect without --baseline"),
    ],
)
def test_other_commands_refuse_what_they_would_not_read(source: Path, words: list[str], needs: str) -> None:
    code, out, err = run(*words, "--model-path", str(source))
    assert (code, out) == (2, "")
    assert needs in err


def test_a_missing_model_exits_with_1(tmp_path: Path) -> None:
    code, _, err = prune(tmp_path / "nowhere", tmp_path / "out")
    assert code == 1
    assert "no such model folder" in err


@pytest.mark.parametrize("blamed", [False, True])
def test_exhausted_memory_says_what_needs_less(
    source: Path, monkeypatch: pytest.MonkeyPatch, blamed: bool
) -> None:
    def exhaust(*_args: object, **_options: object) -> None:
        try:
            torch.empty(2**60, dtype=torch.uint8)
        except RuntimeError as error:
            if blamed:
                raise CheckpointError("source can't be loaded") from error
            raise

    monkeypatch.setattr("optipfair_engine.workflow.analyze_checkpoint", exhaust)
    result = CliRunner().invoke(app, ["analyze", "--model-path", str(source)])
    assert result.exit_code == 1
    assert "--out-of-core" in " ".join(result.stderr.split())


def test_a_failure_that_nobody_foresaw_is_not_explained_away(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: object, **_options: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("optipfair_engine.workflow.analyze_checkpoint", fail)
    result = CliRunner().invoke(app, ["analyze", "--model-path", str(source)])
    assert isinstance(result.exception, RuntimeError)


def test_a_refused_family_names_what_to_do(source: Path, tmp_path: Path) -> None:
    code, _, err = prune(source, tmp_path / "out", "--pruning-type", "MLP")
    assert code == 1
    assert "llama" in err and 'use pruning_type="MLP_GLU"' in err


def test_a_failed_run_keeps_the_earlier_result(source: Path, tmp_path: Path) -> None:
    assert prune(source, tmp_path / "out")[0] == 0
    before = (tmp_path / "out/model.safetensors").read_bytes()
    assert prune(source, tmp_path / "out", "--layer-indices", "99", "--overwrite")[0] == 2
    assert (tmp_path / "out/model.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_text_without_a_tokenizer_is_a_clear_failure(source: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("some words")
    code, _, err = prune(source, tmp_path / "out", "--calibration", text)
    assert code == 1
    assert "tokenizer" in err and "Traceback" not in err


def test_analyze_shows_tables_or_json(source: Path) -> None:
    code, out, _ = run("analyze", "--model-path", source)
    assert code == 0 and "Parameter distribution" in out
    code, out, _ = run("analyze", "--model-path", source, "--json")
    assert json.loads(out)["num_layers"] == 4


def test_analyze_says_how_neurons_of_a_plain_mlp_are_pruned(tmp_path: Path) -> None:
    config = GPT2Config(vocab_size=48, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    code, out, _ = run("analyze", "--model-path", tmp_path / "gpt2")
    assert code == 0 and "--pruning-type MLP" in out


def test_analyze_says_why_neurons_cannot_be_pruned(tmp_path: Path) -> None:
    config = T5Config(vocab_size=48, d_model=16, d_ff=24, num_layers=1, num_heads=2, d_kv=8)
    T5ForConditionalGeneration(config).save_pretrained(tmp_path / "t5")
    code, out, err = run("analyze", "--model-path", tmp_path / "t5")
    assert code == 0 and "Parameter distribution" in out
    assert "t5: neurons can't be removed" in err


def test_evaluate_of_nothing_exits_with_2(source: Path) -> None:
    code, _, err = run("evaluate", "--model-path", source)
    assert code in (1, 2) and err


def test_plain_lines_tell_first_last_and_about_every_tenth(capsys: pytest.CaptureFixture[str]) -> None:
    lines = _Lines()
    for done in range(1, 101):
        lines("prune", done, 100, "")
    printed = capsys.readouterr().err.splitlines()
    assert printed[0] == "Pruning: 1/100" and printed[-1] == "Pruning: 100/100"
    assert 10 <= len(printed) <= 12
    lines("prune", 1, 100, "again")
    assert capsys.readouterr().err == "Pruning: 1/100 again\n"


@pytest.mark.parametrize(
    ("value", "text"),
    [(1234567, "1,234,567"), (0.123456, "0.1235"), (12345.678, "12,345.7"), (None, "–"), ("x", "x")],
)
def test_numbers_are_formatted_for_people(value: object, text: str) -> None:
    assert formatted(value) == text


def test_static_pruning_streams_and_gives_the_bytes_of_the_model_in_memory(
    source: Path, tmp_path: Path
) -> None:
    assert prune(source, tmp_path / "streamed")[0] == 0
    assert prune(source, tmp_path / "in_memory", "--verify", "logits")[0] == 0
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("streamed", "in_memory")]
    plans = [(tmp_path / name / "plan.json").read_bytes() for name in ("streamed", "in_memory")]
    metrics = [
        json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("streamed", "in_memory")
    ]
    assert weights[0] == weights[1] and plans[0] == plans[1]
    assert [found.pop("reload_check") for found in metrics] == ["structure", "logits"]
    for found in metrics:
        del found["seconds"], found["output_bytes"], found["execution_reason"]
    assert [found.pop("execution") for found in metrics] == ["streamed", "memory"]
    assert metrics[0] == metrics[1]


def test_a_result_as_large_as_the_model_says_so(source: Path, tmp_path: Path) -> None:
    for options in (
        ["--expansion-divisor", "32", "--pruning-percentage", "5"],
        ["--pruning-percentage", "1"],
    ):
        code, out, _ = prune(source, tmp_path / "out", *options, "--json", "--quiet", "--overwrite")
        assert code == 0
        (warning,) = json.loads(out)["warnings"]
        assert warning["code"] == "nothing_pruned" and "nothing is pruned" in warning["message"]
        assert json.loads((tmp_path / "out/metrics.json").read_text())["warnings"] == [warning]
    assert "Warning: nothing is pruned" in " ".join(prune(source, tmp_path / "new", *options)[2].split())


def test_a_terminated_run_leaves_nothing_behind(source: Path, tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\n"
        "from optipfair_engine import cli\n"
        "from optipfair_engine.workflow.prune import route\n"
        "route.choose_route = lambda *_: os.kill(os.getpid(), signal.SIGTERM)\n"
        f"sys.argv = ['optipfair', 'prune', '--model-path', {str(source)!r}, "
        f"'--output-path', {str(tmp_path / 'out')!r}, '--verify', 'structure']\n"
        "cli.main()"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode == 143
    assert list(tmp_path.iterdir()) == []


def test_the_version_needs_no_command() -> None:
    from optipfair_engine import __version__

    assert run("--version")[:2] == (0, f"{__version__}\n")
