"""What the docs and templates tell CI systems to run, run as it stands against a real service."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import junitparser
import pytest
import yaml

from tests.tiny import tiny_llama, word_tokenizer, write_checkpoint

from .harness import Service, environment, wait_for

ROOT = Path(__file__).resolve().parents[2]
ACTION = ROOT / "deploy" / "github-action" / "action.yml"
GITLAB = ROOT / "deploy" / "gitlab" / "optipfair.gitlab-ci.yml"
METRIC = "percentage_reduction"
OUTCOMES = [(1, 0, "pass"), (99, 22, "fail")]
_EXPRESSION = re.compile(r"\$\{\{ *([a-z0-9_.-]+) *\}\}")


@pytest.mark.parametrize(
    ("schema", "path"),
    [("github-actions", ACTION), ("gitlab-ci", GITLAB)],
)
def test_the_templates_fit_their_schemas(schema: str, path: Path) -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}", str(path)]
    if schema == "gitlab-ci":
        command += ["--data-transform", "gitlab-ci"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def write_job(folder: Path, minimum: float, **body: Any) -> None:
    spec = {"model": {"source": "local", "name": "tiny"}, "pruning_percentage": 25}
    gates = [{"metric": METRIC, "min": minimum}]
    (folder / "job.json").write_text(json.dumps({"kind": "prune", "spec": spec, "gates": gates, **body}))


def access(service: Service) -> dict[str, str]:
    return {
        "OPTIPFAIR_URL": service.url,
        "OPTIPFAIR_KEY": (service.data_dir / "admin.key").read_text().strip(),
    }


def shell(script: str, folder: Path, env: dict[str, str], *flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*(flags or ("sh",)), "-c", script],
        cwd=folder,
        env=environment(**env),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def check_log(log: str, outcome: str, minimum: float) -> None:
    [row] = [line for line in log.splitlines() if line.startswith(f"| {METRIC} |")]
    value = float(row.split("|")[2])
    assert 0 < value < 99
    assert row.endswith(f"| ≥ {minimum} | {outcome} |")
    assert f"verdict: {outcome}" in log


def check_junit(path: Path, outcome: str) -> None:
    [suite] = junitparser.JUnitXml.fromfile(str(path))
    assert (suite.tests, suite.failures) == (1, int(outcome == "fail"))


@pytest.mark.server
@pytest.mark.slow
class TestCurl:
    def script(self) -> str:
        section = (ROOT / "docs" / "ci.md").read_text().partition("## With nothing but curl")[2]
        return section.partition("```bash\n")[2].partition("```")[0]

    @pytest.mark.parametrize(("minimum", "code", "outcome"), OUTCOMES)
    def test_the_log_shows_what_was_measured_and_the_step_fails_with_the_gate(
        self, service: Service, tmp_path: Path, minimum: int, code: int, outcome: str
    ) -> None:
        write_job(tmp_path, minimum)
        done = shell(self.script(), tmp_path, {**access(service), "BUILD_ID": tmp_path.name})
        assert done.returncode == code, done.stderr
        check_log(done.stdout, outcome, minimum)
        check_junit(tmp_path / "junit.xml", outcome)

    def test_a_job_that_outlasts_one_held_request_is_asked_for_again(
        self, service: Service, tmp_path: Path
    ) -> None:
        write_job(tmp_path, 1, labels={"test.engine": "hold:4"})
        script = self.script().replace("wait=60", "wait=1")
        done = shell(script, tmp_path, {**access(service), "BUILD_ID": tmp_path.name})
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("## ") == 1  # nothing was printed for the answers in between

    def test_a_job_that_is_refused_says_why(self, service: Service, tmp_path: Path) -> None:
        (tmp_path / "job.json").write_text('{"kind": "prune", "spec": {}}')
        done = shell(self.script(), tmp_path, {**access(service), "BUILD_ID": tmp_path.name})
        assert done.returncode == 1
        assert "validation_failed" in done.stdout


@pytest.mark.server
@pytest.mark.slow
def test_the_guides_first_example_is_one_pipeline_from_the_shell(service: Service, tmp_path: Path) -> None:
    section = (ROOT / "docs" / "ci.md").read_text().partition("## Several steps under one verdict")[2]
    job = section.partition("```json\n")[2].partition("```")[0]
    (tmp_path / "job.json").write_text(job)
    words = sorted(set(re.findall(r"[\w.]+", job)))
    tokenizer = word_tokenizer(["<unk>", "<eos>", *words], unk_token="<unk>", eos_token="<eos>")
    model = tiny_llama(vocab_size=len(words) + 2, num_hidden_layers=5, initializer_range=0.3)
    for layer in model.model.layers[:3]:  # these do next to nothing, which the last three don't
        layer.mlp.down_proj.weight.data *= 1e-3
        layer.self_attn.o_proj.weight.data *= 1e-3
    written = write_checkpoint(service.data_dir / "smollm2", model, tokenizer)
    text = service.data_dir / "calibration" / "wiki.txt"
    text.parent.mkdir(exist_ok=True)
    text.write_text("The doctor spoke to the patient. " * 40)
    written.rename(service.data_dir / "models" / "smollm2")
    wait_for(lambda: "wiki.txt" in str(service.get("/v1/calibrations")), "the text to be seen")
    wait_for(lambda: "smollm2" in str(service.get("/v1/models")), "the model to be seen")
    done = shell(section.partition("```bash\n")[2].partition("```")[0], tmp_path, access(service))
    assert done.returncode == 0, done.stderr + done.stdout
    told = json.loads(done.stdout)
    created = json.loads((tmp_path / "job-as-created.json").read_text())
    job = service.job(created["id"])
    assert job["state"] == "succeeded", job["error"]
    files = service.download(created["id"])
    assert json.loads(files["informed.config.json"])["num_hidden_layers"] == 2
    assert json.loads(files["standard.config.json"])["num_hidden_layers"] == 2
    gone = json.loads(files["informed.plan.json"])["removed_layers"]
    assert gone == sorted(told["least_important"]) == [0, 1, 2]
    assert json.loads(files["standard.plan.json"])["removed_layers"] == [2, 3, 4]
    assert all(isinstance(value, int | float) for name, value in told.items() if name != "least_important")
    assert told["original_bias"] > 0 and told["informed_bias"] != told["standard_bias"]


class Runner:
    """As much of GitHub's runner as a composite action of shell steps needs."""

    def __init__(self, folder: Path, inputs: dict[str, str], **environ: str) -> None:
        self.action = yaml.safe_load(ACTION.read_text())
        self.folder, self.environ = folder, environ
        defaults = {name: str(item.get("default", "")) for name, item in self.action["inputs"].items()}
        self.values = {f"inputs.{name}": value for name, value in {**defaults, **inputs}.items()}
        self.values |= {"github.token": "ght", "github.event.pull_request.number": "7"}
        self.log, self.code = "", 0
        self.temp, self.summary = folder / "temp", folder / "summary.md"
        self.temp.mkdir()
        self.summary.touch()

    def run(self, *steps: int) -> Runner:
        """Run the steps of these numbers, as long as none fails."""
        for number in steps:
            step = self.action["runs"]["steps"][number]
            assert (
                "${{" not in step["run"]
            )  # an expression in a script would be code of whoever wrote its value
            output = self.folder / f"output{number}"
            output.touch()
            env = {name: self._filled(text) for name, text in step["env"].items()} | self.environ
            env |= {
                "GITHUB_OUTPUT": str(output),
                "GITHUB_STEP_SUMMARY": str(self.summary),
                "RUNNER_TEMP": str(self.temp),
            }
            done = shell(step["run"], self.folder, env, "bash", "--noprofile", "--norc", "-eo", "pipefail")
            self.log += done.stdout + done.stderr
            for line in output.read_text().splitlines():
                name, _, value = line.partition("=")
                self.values[f"steps.{step['id']}.outputs.{name}"] = value
            if done.returncode:
                self.code = done.returncode
                break
        return self

    def _filled(self, text: str) -> str:
        filled = _EXPRESSION.sub(lambda found: self.values[found[1]], text)
        return self._filled(filled) if _EXPRESSION.search(filled) else filled


@contextmanager
def comments_api() -> Iterator[tuple[str, dict[int, str]]]:
    """GitHub's comments of one pull request: the URL, and the comments by id."""
    kept: dict[int, str] = {1: "looks good to me"}

    class Handler(BaseHTTPRequestHandler):
        def answer(self, body: Any) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def sent(self) -> str:
            assert self.headers["Authorization"] == "Bearer ght"
            return str(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["body"])

        def do_GET(self) -> None:
            self.answer([{"id": number, "body": text} for number, text in kept.items()])

        def do_POST(self) -> None:
            assert self.path == "/repos/acme/models/issues/7/comments"
            kept[max(kept) + 1] = self.sent()
            self.answer({})

        def do_PATCH(self) -> None:
            kept[int(self.path.removeprefix("/repos/acme/models/issues/comments/"))] = self.sent()
            self.answer({})

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", kept
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.server
@pytest.mark.slow
class TestGitHub:
    def inputs(self, service: Service) -> dict[str, str]:
        given = access(service)
        return {
            "url": given["OPTIPFAIR_URL"] + "/",
            "key": given["OPTIPFAIR_KEY"],
            "job": "job.json",
            "junit": "junit.xml",
        }

    @pytest.mark.parametrize(("minimum", "code", "outcome"), OUTCOMES)
    def test_the_summary_is_always_written_and_the_outputs_say_how_it_went(
        self, service: Service, tmp_path: Path, minimum: int, code: int, outcome: str
    ) -> None:
        write_job(tmp_path, minimum)
        runner = Runner(tmp_path, self.inputs(service), GITHUB_RUN_ID=tmp_path.name).run(0, 1)
        assert runner.code == code, runner.log
        check_log(runner.summary.read_text(), outcome, minimum)
        check_junit(tmp_path / "junit.xml", outcome)
        assert runner.values["steps.verdict.outputs.verdict"] == outcome
        job_id = runner.values["steps.submit.outputs.job-id"]
        assert runner.values["steps.submit.outputs.job-url"] == f"{service.url}/jobs/{job_id}"
        assert access(service)["OPTIPFAIR_KEY"] not in "".join(
            path.read_text() for path in tmp_path.rglob("*") if path.is_file()
        )

    def test_one_comment_is_kept_up_to_date(self, service: Service, tmp_path: Path) -> None:
        write_job(tmp_path, 1)
        with comments_api() as (url, kept):
            more = {"GITHUB_API_URL": url, "GITHUB_REPOSITORY": "acme/models", "GITHUB_RUN_ID": tmp_path.name}
            runner = Runner(tmp_path, self.inputs(service), **more).run(0, 1, 2)
            assert runner.code == 0, runner.log
            assert list(kept) == [1, 2]
            (runner.temp / "optipfair.md").write_text("newer `text` | $(id)")
            runner.run(2)
            assert (list(kept), kept[1]) == ([1, 2], "looks good to me")
            assert kept[2].endswith("newer `text` | $(id)")

    def test_a_job_that_does_not_end_in_time_is_no_pass(self, service: Service, tmp_path: Path) -> None:
        write_job(tmp_path, 1, labels={"test.engine": "hold:60"})
        inputs = {**self.inputs(service), "timeout-minutes": "0", "junit": ""}
        runner = Runner(tmp_path, inputs, GITHUB_RUN_ID=tmp_path.name).run(0)
        step = runner.action["runs"]["steps"][1]
        step["run"] = step["run"].replace("wait=60", "wait=1").replace("$((MINUTES * 60))", "2")
        runner.run(1)
        assert runner.code == 1
        assert "did not end within" in runner.summary.read_text()
        job_id = runner.values["steps.submit.outputs.job-id"]
        service.client.post(f"/v1/jobs/{job_id}/cancel")


@pytest.mark.parametrize(
    ("inputs", "environ", "code", "words"),
    [
        ({}, {"GITHUB_EVENT_NAME": "pull_request"}, 1, "no secrets to pull requests from forks"),
        ({"without-key": "skip"}, {"GITHUB_EVENT_NAME": "pull_request"}, 0, "The gate was skipped"),
        ({"key": "ofk_x"}, {"GITHUB_EVENT_NAME": "pull_request_target"}, 1, "Refused in pull_request_target"),
    ],
)
def test_a_fork_gets_a_clear_message_and_no_job(
    tmp_path: Path, inputs: dict[str, str], environ: dict[str, str], code: int, words: str
) -> None:
    write_job(tmp_path, 1)
    given = {"url": "http://127.0.0.1:9", "key": "", "job": "job.json", **inputs}
    runner = Runner(tmp_path, given, **environ).run(0)
    assert (runner.code, words in runner.log) == (code, True), runner.log
    assert "steps.submit.outputs.job-id" not in runner.values


@pytest.mark.server
@pytest.mark.slow
class TestGitLab:
    @pytest.mark.parametrize(("minimum", "code", "outcome"), OUTCOMES)
    def test_the_log_and_both_reports(
        self, service: Service, tmp_path: Path, minimum: int, code: int, outcome: str
    ) -> None:
        write_job(tmp_path, minimum)
        job = yaml.safe_load(GITLAB.read_text())[".optipfair"]
        variables = {
            **job["variables"],
            **access(service),
            "OPTIPFAIR_JOB": "job.json",
            "CI_JOB_ID": tmp_path.name,
        }
        done = shell("\n".join([*job["before_script"], *job["script"]]), tmp_path, variables)
        assert done.returncode == code, done.stderr
        check_log(done.stdout, outcome, minimum)
        reports = job["artifacts"]["reports"]
        check_junit(tmp_path / reports["junit"], outcome)
        metrics = dict(line.split(" ") for line in (tmp_path / reports["metrics"]).read_text().splitlines())
        assert float(metrics[METRIC]) > 0
        assert all(re.fullmatch(r"[A-Za-z0-9_:]+", name) for name in metrics)

    def test_without_a_key_it_says_why(self, tmp_path: Path) -> None:
        job = yaml.safe_load(GITLAB.read_text())[".optipfair"]
        done = shell(
            "\n".join(job["script"]), tmp_path, {**job["variables"], "OPTIPFAIR_URL": "http://127.0.0.1:9"}
        )
        assert (done.returncode, "no OPTIPFAIR_KEY" in done.stderr) == (1, True)


def page_blocks(page: str, language: str, after: str) -> list[str]:
    """The blocks of a language behind some words of a page, for the model and the address of a test."""
    text = (ROOT / page).read_text().partition(after)[2]
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@pytest.mark.server
@pytest.mark.slow
class TestFirstPages:
    """What a newcomer copies from the first pages, as it stands but for the port and the model."""

    def follow(self, script: str, service: Service, folder: Path) -> str:
        local = script.replace("http://127.0.0.1:8000", service.url).replace("smollm2", "tiny")
        (folder / "data").symlink_to(service.data_dir)
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        done = shell(f"set -eu\n{local}", folder, {"PATH": path, "BUILD_ID": folder.name}, "bash")
        assert done.returncode == 0, done.stderr + done.stdout
        return done.stdout

    def test_the_readme(self, service: Service, tmp_path: Path) -> None:
        script = page_blocks("README.md", "bash", "The first start prints an admin API key")[0]
        told = self.follow(re.sub(r"^.*optipfair demo-model.*$", "", script, flags=re.M), service, tmp_path)
        assert '"percentage_reduction"' in told and '"pass"' in told
        assert [path.suffix for path in tmp_path.iterdir() if path.name != "data"] == [".tar"]

    def test_the_walk_from_a_job_to_a_checkpoint(self, service: Service, tmp_path: Path) -> None:
        script = "\n".join(page_blocks("docs/http.md", "bash", "# Using the service over HTTP")[:2])
        self.follow(script, service, tmp_path)
        assert {"model.safetensors", "SHA256SUMS"} <= {path.name for path in tmp_path.iterdir()}
        assert len(list(tmp_path.glob("*.tar"))) == 1

    def test_the_quickstart(self, service: Service, tmp_path: Path) -> None:
        [body] = page_blocks("docs/quickstart.md", "json", "## As a service")
        (tmp_path / "job.json").write_text(body.replace("smollm2", "tiny"))
        self.follow(page_blocks("docs/quickstart.md", "bash", "## As a service")[1], service, tmp_path)
        assert (tmp_path / "pruned" / "model.safetensors").exists()
