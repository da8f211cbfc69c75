"""Suites by name: their entries, their files, several in one job."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from typer.testing import CliRunner

from optipfair_engine.bias.prompts import fetching
from optipfair_engine.bias.prompts.catalogued import read_catalogued
from optipfair_engine.bias.prompts.fetching import fetch_suite
from optipfair_engine.cli.app import app
from optipfair_engine.errors import InvalidOptionError, SuiteDataError
from optipfair_engine.options.suites import CATALOGUE, SuiteEntry, entry_of, metric_names, parse_metric
from optipfair_engine.workflow.bias import BiasOptions, bias_checkpoint
from tests.suite_files import CROWS, STEREO
from tests.tiny import write_checkpoint


@pytest.fixture
def suites(tmp_path: Path) -> Path:
    """A suites folder: one file in the suite's own folder, one beside it under the published name."""
    folder = tmp_path / "suites"
    (folder / "crows_pairs").mkdir(parents=True)
    (folder / "crows_pairs" / "crows_pairs_anonymized.csv").write_text(CROWS)
    (folder / "dev.json").write_text(STEREO)
    return folder


@pytest.fixture(scope="module")
def models(llama, make_llama, tokenizer, tmp_path_factory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("models")
    return (
        write_checkpoint(root / "tiny", llama, tokenizer),
        write_checkpoint(root / "other", make_llama(seed=3), tokenizer),
    )


@pytest.mark.parametrize("entry", CATALOGUE, ids=lambda entry: entry.name)
def test_an_entry_says_what_it_is_and_gates_know_its_metrics(entry: SuiteEntry) -> None:
    assert all((entry.measures, entry.licence, entry.citation, entry.languages, entry.metrics))
    for file in entry.files:
        assert file.url.startswith("https://")
        assert (file.sha256 is None) == (file.size is None)
        assert file.sha256 is None or len(file.sha256) == 64
    for name in metric_names(entry.name):
        found = parse_metric(name)
        assert found is not None and found.suite == entry.name


def test_metrics_that_no_suite_gives_are_unknown() -> None:
    unknown = ("score", "crows_pairs.s_amb", "crows_pairs.race-color.score", "crows_pairs.height.score")
    assert [parse_metric(name) for name in (*unknown, "crows_pairs.race.perplexity", "x.score")] == [None] * 6


def test_several_suites_are_asked_of_one_loaded_model(models, suites, tmp_path) -> None:
    stages: list[tuple[str, str]] = []
    options = BiasOptions(suites=["crows_pairs", "stereoset"])
    metrics = bias_checkpoint(
        models[0],
        tmp_path / "out",
        options,
        suites_folder=suites,
        report=lambda stage, _done, _total, message: stages.append((stage, message)),
    )
    assert [stage for stage, _ in stages].count("load") <= 2
    assert {message.split(":")[0] for stage, message in stages if stage == "bias"} == set(options.suites)
    alone = bias_checkpoint(
        models[0],
        tmp_path / "alone",
        BiasOptions(suite=suites / "crows_pairs" / "crows_pairs_anonymized.csv"),
    )
    assert metrics["crows_pairs.score"] == alone["crows_pairs_score"]
    assert metrics["crows_pairs.perplexity"] == alone["perplexity"]
    assert metrics["crows_pairs.race.score_low"] <= metrics["crows_pairs.race.score"]
    assert metrics["stereoset.ss"] == metrics["stereoset.gender.ss"] == metrics["stereoset.intrasentence.ss"]
    assert "items" not in metrics and metrics["stereoset.items"] == 3
    numbers = {name.removesuffix("_low").removesuffix("_high") for name in metrics if "." in name}
    assert all(parse_metric(name) for name in numbers)
    report = (tmp_path / "out" / "report.html").read_text()
    assert ">CrowS-Pairs</h2>" in report and ">StereoSet</h2>" in report
    assert set(json.loads((tmp_path / "out" / "bias_metrics.json").read_text())) == set(options.suites)


def test_a_baseline_stands_beside_every_suite(models, suites, tmp_path) -> None:
    options = BiasOptions(suites=["stereoset", "crows_pairs"])
    metrics = bias_checkpoint(models[1], tmp_path / "out", options, baseline=models[0], suites_folder=suites)
    own = bias_checkpoint(models[0], tmp_path / "own", options, suites_folder=suites)
    assert metrics["crows_pairs.score_baseline"] == own["crows_pairs.score"]
    assert metrics["stereoset.lms_baseline"] == own["stereoset.lms"]
    shift = abs(metrics["crows_pairs.score"] - 50) - abs(own["crows_pairs.score"] - 50)
    assert 100 * metrics["crows_pairs.preference_change"] == pytest.approx(shift)
    assert metrics["crows_pairs.outcome"] in ("better", "worse", "inconclusive")
    assert {"crows_pairs.race.preference_change", "stereoset.mcnemar_p"} <= metrics.keys()
    wanted = {n for n in metrics if "." in n and not n.endswith(("_low", "_high", ".outcome"))}
    assert all(parse_metric(name) for name in wanted)
    assert "Compared with the baseline, CrowS-Pairs" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"suites": []}, "names none; there are optipfair"),
        ({"suites": ["stereoset", "stereoset"]}, "stereoset twice"),
        ({"suites": ["nosuch"]}, "crows_pairs"),
        ({"suites": ["stereoset"], "suite": Path("x")}, "mutually exclusive"),
        ({"suites": ["stereoset"], "neuron_ranking": True}, "neuron_ranking: for prompt pairs only"),
        ({"suites": ["stereoset"], "control_pairs": [["a", "b"]]}, "control_pairs: not with suites"),
    ],
)
def test_what_does_not_go_with_suites_is_refused(options, message) -> None:
    with pytest.raises(InvalidOptionError, match=message):
        BiasOptions(**options)


def test_missing_and_foreign_files_are_named_before_a_model_is_loaded(suites, tmp_path) -> None:
    with pytest.raises(SuiteDataError, match=r"put crows_pairs_anonymized.csv \(from .*into .*crows_pairs"):
        bias_checkpoint(
            tmp_path / "none", tmp_path / "out", BiasOptions(suites=["crows_pairs"]), suites_folder=tmp_path
        )
    (suites / "crows_pairs" / "crows_pairs_anonymized.csv").write_text(STEREO)
    with pytest.raises(InvalidOptionError, match="is not CrowS-Pairs"):
        read_catalogued("crows_pairs", suites)


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        if self.path.endswith("moved.csv"):
            self.send_response(302)
            self.send_header("Location", "/crows_pairs/crows_pairs_anonymized.csv")
            self.end_headers()
            return
        super().do_GET()


@pytest.fixture
def mirror(suites: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(suites)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def known(**changes: object) -> SuiteEntry:
    """The entry of CrowS-Pairs as if this file's few items were the published ones."""
    entry = entry_of("crows_pairs")
    content = CROWS.encode()
    facts = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), **changes}
    return replace(entry, files=(replace(entry.files[0], **facts),))


def test_a_fetched_file_is_whole_and_readable_and_fetched_once(mirror, tmp_path) -> None:
    target = tmp_path / "fetched"
    (path,) = fetch_suite(known(), target, mirror=mirror)
    assert path == target / "crows_pairs" / "crows_pairs_anonymized.csv"
    assert path.read_text() == CROWS and path.stat().st_mode & 0o044
    assert len(read_catalogued("crows_pairs", target)) == 3
    assert fetch_suite(known(), target, mirror="http://127.0.0.1:9") == [path]  # nothing is asked again
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"sha256": "0" * 64}, "its SHA-256 is"),
        ({"size": 10}, "longer than 10 bytes"),
        ({"name": "absent.csv"}, "status is 404"),
        ({"name": "moved.csv"}, "status is 302"),
    ],
)
def test_another_file_than_the_published_one_leaves_nothing(mirror, tmp_path, changes, reason) -> None:
    with pytest.raises(SuiteDataError, match=rf"{reason}.*put .*\.csv \(from https.*crows_pairs"):
        fetch_suite(known(**changes), tmp_path / "fetched", mirror=mirror)
    assert not list((tmp_path / "fetched").rglob("*.*"))


def test_without_a_network_the_error_says_which_file_to_put_where(tmp_path) -> None:
    with pytest.raises(SuiteDataError, match=r"ConnectError.*put crows_pairs_anonymized.csv .*fetched/crows"):
        fetch_suite(known(), tmp_path / "fetched", mirror="http://127.0.0.1:9")


def test_only_https_is_called_and_only_what_can_be_checked(tmp_path) -> None:
    for address in ("http://example.org", "ftp://127.0.0.1", "https://user@example.org"):
        with pytest.raises(InvalidOptionError, match="by https alone"):
            fetch_suite(known(), tmp_path, mirror=address)
    fetching.check_address("http://localhost:8000/x")
    with pytest.raises(SuiteDataError, match="can't be checked here"):
        fetch_suite(known(sha256=None), tmp_path)


def test_the_commands(models, suites, mirror, tmp_path) -> None:
    runner = CliRunner()
    folder = ["--suites-folder", str(suites)]
    listed = json.loads(runner.invoke(app, ["suites", "list", "--json", *folder]).stdout)["suites"]
    assert {entry["name"]: entry["state"] for entry in listed}["stereoset"] == "here"
    shown = runner.invoke(app, ["suites", "show", "stereoset", "--suites-folder", str(tmp_path)])
    assert "CC BY-SA 4.0" in shown.stdout and "put stereoset.jsonl" in shown.stdout
    wrong = runner.invoke(app, ["suites", "fetch", "stereo"])
    assert wrong.exit_code == 2 and "there are optipfair" in wrong.output
    refused = runner.invoke(
        app, ["suites", "fetch", "crows_pairs", "--suites-folder", str(tmp_path / "new"), "--mirror", mirror]
    )
    assert refused.exit_code == 1 and "its SHA-256 is" in refused.output
    arguments = ["--model-path", str(models[0]), "--output-path", str(tmp_path / "out"), "--quiet", "--json"]
    result = runner.invoke(
        app, ["bias", *arguments, "--suites", "crows_pairs,stereoset", "--device", "cpu", *folder]
    )
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["stereoset.items"] == 3
