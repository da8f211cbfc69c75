"""What the docs and templates tell CI systems to run, run as it stands against a real service."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import junitparser
import pytest
import yaml

from tests.api.issuer import AUDIENCE, Issuer
from tests.tiny import tiny_llama, word_tokenizer, write_checkpoint, write_tiny_llama

from ..harness import Service, running, wait_for
from .github import ACTION, Runner, comments_api, shell

pytestmark = pytest.mark.xdist_group("service")
ROOT = Path(__file__).resolve().parents[3]
GITLAB = ROOT / "deploy" / "gitlab" / "optipfair.gitlab-ci.yml"
METRIC = "percentage_reduction"
OUTCOMES = [(1, 0, "pass"), (99, 22, "fail")]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with the model `tiny` that lets issuers be on the loopback."""
    data_dir = tmp_path_factory.mktemp("service") / "data"
    write_tiny_llama(data_dir / "models" / "tiny")
    with running(data_dir, OPTIPFAIR_ALLOW_LOOPBACK_WEBHOOKS="true") as started:
        yield started


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


def examples(language: str) -> list[str]:
    """The pieces of a language in docs/ci.md, in order."""
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "docs" / "ci.md").read_text(), re.DOTALL)


def test_the_examples_fit_the_same_schemas(tmp_path: Path) -> None:
    kinds = {"github-workflows": [], "gitlab-ci": []}  # type: dict[str, list[str]]
    for number, example in enumerate(examples("yaml")):
        document = yaml.safe_load(example)
        if isinstance(document, list):  # steps alone
            job = {"runs-on": "ubuntu-latest", "steps": document}
            document = {"on": "push", "jobs": {"gate": job}}
            example = yaml.safe_dump(document)
        schema = "github-workflows" if "jobs" in document else "gitlab-ci"
        (tmp_path / f"{number}.yml").write_text(example)
        kinds[schema].append(str(tmp_path / f"{number}.yml"))
        uses = [step for job in document.get("jobs", {}).values() for step in job["steps"]]
        for step in (step for step in uses if step.get("uses") == "./deploy/github-action"):
            assert set(step["with"]) <= set(yaml.safe_load(ACTION.read_text())["inputs"])
    assert {schema: len(paths) for schema, paths in kinds.items()} == {"github-workflows": 3, "gitlab-ci": 2}
    for schema, paths in kinds.items():
        command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}", *paths]
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
        runner = Runner(tmp_path, self.inputs(service), GITHUB_RUN_ID=tmp_path.name).run()
        assert runner.code == code, runner.log
        check_log(runner.summary.read_text(), outcome, minimum)
        check_junit(tmp_path / "junit.xml", outcome)
        outputs = runner.outputs()
        assert outputs["verdict"] == outcome
        assert service.job(outputs["job-id"])["verdict"] == outcome
        assert outputs["job-url"] == f"{service.url}/jobs/{outputs['job-id']}"
        assert "Comment on the pull request" not in runner.ran  # nobody asked for one
        assert access(service)["OPTIPFAIR_KEY"] not in "".join(
            path.read_text() for path in tmp_path.rglob("*") if path.is_file()
        )

    def test_one_comment_is_kept_up_to_date(self, service: Service, tmp_path: Path) -> None:
        write_job(tmp_path, 1)
        with comments_api() as (url, kept):
            more = {"GITHUB_API_URL": url, "GITHUB_REPOSITORY": "acme/models", "GITHUB_RUN_ID": tmp_path.name}
            more["GITHUB_EVENT_NAME"] = "pull_request"
            runner = Runner(tmp_path, {**self.inputs(service), "comment": "true"}, **more).run()
            assert runner.code == 0, runner.log
            assert list(kept) == [1, 2]
            (runner.temp / "optipfair.md").write_text("newer `text` | $(id)")
            runner.step(2)
            assert (list(kept), kept[1]) == ([1, 2], "looks good to me")
            assert kept[2].endswith("newer `text` | $(id)")

    def test_a_job_that_does_not_end_in_time_is_no_pass(self, service: Service, tmp_path: Path) -> None:
        write_job(tmp_path, 1, labels={"test.engine": "hold:60"})
        inputs = {**self.inputs(service), "timeout-minutes": "0", "junit": ""}
        runner = Runner(tmp_path, inputs, GITHUB_RUN_ID=tmp_path.name)
        waits = runner.action["runs"]["steps"][1]
        waits["run"] = waits["run"].replace("wait=60", "wait=1")
        assert runner.run().code == 1
        assert "did not end within" in runner.summary.read_text()
        assert runner.outputs()["verdict"] == "none"
        service.client.post(f"/v1/jobs/{runner.outputs()['job-id']}/cancel")


@pytest.mark.parametrize(
    ("inputs", "event", "code", "words"),
    [
        ({}, "pull_request", 1, "neither secrets nor tokens to pull requests from forks"),
        ({"audience": AUDIENCE}, "pull_request", 1, "neither secrets nor tokens"),
        ({"without-key": "skip"}, "pull_request", 0, "The gate was skipped"),
        ({"key": "ofk_x"}, "pull_request_target", 1, "Refused in pull_request_target"),
    ],
)
def test_a_fork_gets_a_clear_message_and_no_job(
    tmp_path: Path, inputs: dict[str, str], event: str, code: int, words: str
) -> None:
    write_job(tmp_path, 1)
    given = {"url": "http://127.0.0.1:9", "key": "", "job": "job.json", **inputs}
    runner = Runner(tmp_path, given, GITHUB_EVENT_NAME=event).run()
    assert (runner.code, words in runner.log) == (code, True), runner.log
    assert runner.ran == ["Submit the job"]
    skipped = "skipped" if code == 0 else ""
    assert runner.outputs() == {"verdict": skipped, "job-id": "", "job-url": ""}


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


class CI(Issuer):
    """A CI system that gives its runs tokens of their own; keys can be made to end early."""

    def __init__(self, service: Service, claims: dict[str, str], ends_after: int = 0) -> None:
        super().__init__()
        self.own, self.given, self.ends_after, self.service = claims, 0, ends_after, service
        self.rule = self.trust(claims)
        self.environ = {
            "OPTIPFAIR_URL": service.url,
            "ACTIONS_ID_TOKEN_REQUEST_URL": f"{self.url}/token?api-version=2.0",
            "ACTIONS_ID_TOKEN_REQUEST_TOKEN": "of-the-run",
        }

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        if path == f"/token?api-version=2.0&audience={AUDIENCE}":
            self.given += 1
            if self.given == self.ends_after:
                threading.Timer(1, self.end_keys).start()
            return 200, {}, json.dumps({"value": self.fresh()}).encode()
        return super().answer(path)

    def fresh(self) -> str:
        return self.token(**self.own)

    def trust(self, claims: dict[str, str]) -> str:
        rule = {"issuer": self.url, "audience": AUDIENCE, "claims": claims, "tenant": "nlp"}
        made = self.service.client.post("/v1/trust", json=rule)
        assert made.status_code == 201, made.text
        return str(made.json()["id"])

    def end_keys(self) -> None:
        """What time does to a key: it works no more, and another can be had."""
        before, self.rule = self.rule, self.trust(self.own)
        self.service.client.delete(f"/v1/trust/{before}")


def page_blocks(page: str, language: str, after: str) -> list[str]:
    """The blocks of a language behind some words of a page, for the model and the address of a test."""
    text = (ROOT / page).read_text().partition(after)[2]
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@pytest.mark.server
@pytest.mark.slow
class TestWithoutAStoredKey:
    @pytest.mark.parametrize("place", [0, 1], ids=["GitHub", "GitLab"])
    def test_the_rules_of_the_docs_are_taken(self, service: Service, tmp_path: Path, place: int) -> None:
        section = (ROOT / "docs" / "ci.md").read_text().partition("## Without a stored key")[2]
        script = re.findall(r"```bash\n(.*?)```", section, re.DOTALL)[place]
        given = {"OPTIPFAIR_URL": service.url, "ADMIN_KEY": access(service)["OPTIPFAIR_KEY"]}
        done = shell("gh() { echo 4242; }\n" + script, tmp_path, given)
        assert done.returncode == 0, done.stderr + done.stdout
        assert "4242" in json.loads(done.stdout)["claims"].values()

    def test_the_steps_of_the_docs_give_a_key(self, service: Service, tmp_path: Path) -> None:
        ci = CI(service, {"repository_id": "7001"})
        [steps] = [found for found in map(yaml.safe_load, examples("yaml")) if isinstance(found, list)]
        given = {**ci.environ, "GITHUB_ENV": str(tmp_path / "env")}
        done = shell(steps[0]["run"], tmp_path, given, "bash", "-eo", "pipefail")
        ci.close()
        assert done.returncode == 0, done.stderr
        key = (tmp_path / "env").read_text().strip().removeprefix("OPTIPFAIR_KEY=")
        assert done.stdout == f"::add-mask::{key}\n"
        headers = {"Authorization": f"Bearer {key}"}
        assert httpx.get(f"{service.url}/v1/jobs", headers=headers).status_code == 200

    def test_the_action_has_another_key_when_the_first_has_ended(
        self, service: Service, tmp_path: Path
    ) -> None:
        write_job(tmp_path, 1, labels={"test.engine": "hold:6"})
        ci = CI(service, {"repository_id": "7002"}, ends_after=2)  # while the second step waits
        inputs = {"url": service.url, "audience": AUDIENCE, "job": "job.json", "junit": "junit.xml"}
        runner = Runner(tmp_path, inputs, GITHUB_RUN_ID=tmp_path.name, **ci.environ)
        waits = runner.action["runs"]["steps"][1]
        waits["run"] = waits["run"].replace("wait=60", "wait=1")
        runner.run()
        ci.close()
        assert (runner.code, runner.outputs()["verdict"]) == (0, "pass"), runner.log
        check_junit(tmp_path / "junit.xml", "pass")
        assert ci.given >= 4  # one more to wait with, and one to fetch the results with
        assert service.job(runner.outputs()["job-id"])["created_by"] == {"subject": ci.claims()["sub"]}

    def test_the_action_says_that_no_rule_lets_it_in(self, service: Service, tmp_path: Path) -> None:
        write_job(tmp_path, 1)
        ci = CI(service, {"repository_id": "7003"})
        ci.own = {"repository_id": "7004"}
        runner = Runner(tmp_path, {"url": service.url, "audience": AUDIENCE, "job": "job.json"}, **ci.environ)
        runner.run()
        ci.close()
        assert runner.code == 1
        assert "No key for this run's token: no trust rule lets in this issuer" in runner.log

    def test_gitlabs_template_exchanges_the_jobs_token(self, service: Service, tmp_path: Path) -> None:
        write_job(tmp_path, 1)
        ci = CI(service, {"project_id": "7005", "ref_protected": "true"})
        job = yaml.safe_load(GITLAB.read_text())[".optipfair"]
        variables = {**job["variables"], "OPTIPFAIR_URL": service.url, "OPTIPFAIR_JOB": "job.json"}
        own = {"CI_JOB_ID": tmp_path.name, "OPTIPFAIR_ID_TOKEN": ci.fresh()}
        done = shell("\n".join(job["script"]), tmp_path, {**variables, **own})
        ci.own = {"project_id": "7006", "ref_protected": "true"}
        refused = shell(
            "\n".join(job["script"]), tmp_path, {**variables, **own, "OPTIPFAIR_ID_TOKEN": ci.fresh()}
        )
        ci.close()
        assert done.returncode == 0, done.stderr
        check_log(done.stdout, "pass", 1)
        assert (refused.returncode, "invalid_grant" in refused.stderr) == (1, True)


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
