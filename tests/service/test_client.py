"""The client against a real service: every outcome with its exit code, and files that arrive whole."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import junitparser
import pytest

from service.client import OptipfairClient
from service.client.run import exit_code
from tests.tiny import tiny_llama, word_tokenizer, write_checkpoint, write_tiny_llama

from .harness import Service, environment, running, wait_for

pytestmark = [pytest.mark.server, pytest.mark.slow, pytest.mark.timeout(900)]
TINY = {"source": "local", "name": "tiny"}
#: What an install with nothing but the extra `client` has not; importing one of these fails.
WITHOUT = [
    "fastapi",
    "starlette",
    "uvicorn",
    "pydantic_settings",
    "sqlalchemy",
    "alembic",
    "psycopg",
    "celery",
    "kombu",
    "redis",
    "obstore",
    "structlog",
    "torch",
    "transformers",
    "safetensors",
    "numpy",
    "scipy",
    "matplotlib",
    "uuid_utils",
]
BARE = f"""
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {WITHOUT!r}:
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Missing())
from service.cli import main
main()
"""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("client")
    write_tiny_llama(folder / "data" / "models" / "tiny")
    write_tiny_llama(folder / "data" / "models" / "broken", nan_in="model.layers.1.mlp.up_proj.weight")
    words = ["<unk>", "<eos>", "The", "white", "Black", "nurse"]
    tokenizer = word_tokenizer(words, unk_token="<unk>", eos_token="<eos>")
    model = tiny_llama(vocab_size=len(words))
    write_checkpoint(folder / "data" / "models" / "speaking", model, tokenizer)
    with running(folder / "data") as started:
        wait_for(lambda: "broken" in str(started.get("/v1/models")), "the models to be seen")
        yield started


def key_of(service: Service) -> str:
    return (service.data_dir / "admin.key").read_text().strip()


def command(service: Service, *arguments: str) -> list[str]:
    return [sys.executable, "-c", BARE, *arguments]


def environ(service: Service, **more: str) -> dict[str, str]:
    return environment(OPTIPFAIR_URL=service.url, OPTIPFAIR_KEY=key_of(service), **more)


def call(service: Service, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    """The command as a script runs it, in an install that has only the extra `client`."""
    return subprocess.run(
        command(service, *arguments),
        env=environ(service, **more),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def write_job(folder: Path, **body: Any) -> str:
    kind = body.pop("kind", "prune")
    pruned = {"pruning_percentage": 25} if kind == "prune" else {}
    spec = {"model": TINY, **pruned, **body.pop("spec", {})}
    path = folder / "job.json"
    path.write_text(json.dumps({"kind": kind, "spec": spec, **body}))
    return str(path)


REDUCTION = "percentage_reduction"
#: A bias that was measured with one pair of prompts has no interval: nothing can be said of a bound.
SPEAKING = {"source": "local", "name": "speaking"}
ONE_PAIR = {
    "model": SPEAKING,
    "baseline": SPEAKING,
    "prompt_pairs": [["The white nurse", "The Black nurse"]],
}
UNCERTAIN = [{"metric": "bias_change", "max": 0.5}]


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        ({"gates": [{"metric": REDUCTION, "min": 1}]}, 0, ["pass", "≥ 1"]),
        ({}, 0, ["no gates"]),
        ({"gates": [{"metric": REDUCTION, "min": 99}]}, 1, ["fail", "≥ 99", REDUCTION]),
        ({"kind": "bias", "spec": ONE_PAIR, "gates": UNCERTAIN}, 2, ["inconclusive", "one template"]),
        ({"spec": {"model": {"source": "local", "name": "broken"}}}, 3, ["failed", "weights_not_finite"]),
    ],
    ids=["pass", "none", "fail", "inconclusive", "failed"],
)
def test_the_exit_code_is_the_outcome(
    service: Service, tmp_path: Path, body: dict[str, Any], code: int, words: list[str]
) -> None:
    done = call(service, "run", write_job(tmp_path, **body))
    assert done.returncode == code, done.stderr
    for word in words:
        assert word in done.stdout
    assert "succeeded" in done.stderr or "failed" in done.stderr  # its progress, in lines


def test_logs_are_printed_and_followed_to_the_end(service: Service) -> None:
    job_id = service.post_job(labels={"test.engine": "hold:1"})
    followed = call(service, "logs", job_id, "--follow").stdout.splitlines()
    assert service.job(job_id)["state"] == "succeeded"
    assert followed[0].startswith("=== attempt 1, started ")
    assert call(service, "logs", job_id).stdout.splitlines() == followed
    assert call(service, "logs", job_id, "--tail", "2", "--attempt", "1").stdout.splitlines() == followed[-2:]
    missing = call(service, "logs", job_id, "--attempt", "2")
    assert (missing.returncode, missing.stdout) == (4, "") and "no attempt 2" in missing.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "{bad}"], "no live worker has a model named 'nowhere'"),
        (["run", "{good}", "--key", "ofk_wrong"], "401"),
        (["run", "{good}", "--key", ""], "an API key is needed"),
        (["run", "{good}", "--url", "http://127.0.0.1:9"], "no answer from http://127.0.0.1:9"),
        (["run", "{good}", "--url", "ftp://x"], "begins with http"),
        (["run", "{missing}"], "No such file"),
        (["run", "{text}"], "is not JSON"),
        (["run", "{list}"], "holds no JSON object"),
        (["run", "{good}", "--junit", "{missing}/x.xml"], "can't be written"),
        (["run", "{good}", "--detach", "--junit", "x.xml"], "need the job's end"),
        (["run", "{good}", "--quickly"], "No such option"),
        (["run"], "Missing argument"),
        (["rum", "{good}"], "No such command"),
        (["verdict", "0198"], "404"),
        (["download", "0198"], "404"),
        (["cancel", "../keys"], "404"),
    ],
)
def test_what_is_refused_is_4(service: Service, tmp_path: Path, arguments: list[str], words: str) -> None:
    places = {"good": write_job(tmp_path), "missing": str(tmp_path / "missing")}
    for name, text in (("text", "kind: prune"), ("list", "[]")):
        places[name] = str(tmp_path / name)
        Path(places[name]).write_text(text)
    bad = tmp_path / "bad"
    bad.mkdir()
    places["bad"] = write_job(bad, spec={"model": {"source": "local", "name": "nowhere"}})
    before = len(service.get("/v1/jobs")["items"])
    done = call(service, *(argument.format(**places) for argument in arguments))
    assert done.returncode == 4, done.stderr
    assert words in done.stderr
    assert len(service.get("/v1/jobs")["items"]) == before


def test_ctrl_c_leaves_the_job_running(service: Service, tmp_path: Path) -> None:
    path = write_job(tmp_path, labels={"test.engine": "hold:60"})
    process = subprocess.Popen(
        command(service, "run", path),
        env=environ(service),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # a shell's background jobs ignore Ctrl-C, and so would what these tests start there
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stderr is not None
    job_id = process.stderr.readline().split()[1].rstrip(":")
    service.wait_state(job_id, "running")
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert f"optipfair-service cancel {job_id}" in said
    assert service.job(job_id)["state"] == "running"
    assert call(service, "cancel", job_id).stdout.strip() in ("cancelling", "cancelled")
    done = call(service, "wait", job_id)
    assert (done.returncode, "was cancelled" in done.stdout) == (3, True)


def test_files_texts_and_later_verbs(service: Service, tmp_path: Path) -> None:
    path = write_job(tmp_path, gates=[{"metric": REDUCTION, "min": 99}])
    outputs = [f"--{name}={tmp_path / name}" for name in ("download", "markdown", "junit")]
    done = call(service, "run", path, *outputs)
    assert done.returncode == 1, done.stderr
    job_id = service.get("/v1/jobs")["items"][0]["id"]
    listed = {item["name"]: item["sha256"] for item in service.get(f"/v1/jobs/{job_id}/artifacts")}
    here = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in (tmp_path / "download").iterdir()}
    assert here == listed
    assert f"| {REDUCTION} | " in (tmp_path / "markdown").read_text()
    [suite] = junitparser.JUnitXml.fromfile(str(tmp_path / "junit"))
    assert suite.failures == 1
    again = call(service, "verdict", job_id, f"--markdown={tmp_path / 'again'}")
    assert again.returncode == 1
    assert (tmp_path / "again").read_bytes() == (tmp_path / "markdown").read_bytes()
    assert again.stdout == done.stdout


def test_a_download_goes_on_where_it_was_cut(service: Service, tmp_path: Path) -> None:
    with OptipfairClient(service.url, key_of(service)) as client:
        job = client.submit({"kind": "prune", "spec": {"model": TINY, "pruning_percentage": 25}}, wait=60)
        job = client.wait(job["id"])
        assert job["state"] == "succeeded"
        name = "model.safetensors"
        [whole] = client.download(job["id"], tmp_path / "whole", names=[name])
        content = whole.read_bytes()
        for start, half in (("right", content[:1000]), ("wrong", b"x" * 1000), ("long", content + b"x")):
            folder = tmp_path / start
            folder.mkdir()
            (folder / f"{name}.part").write_bytes(half)
            told: list[tuple[str, int, int]] = []
            client.download(
                job["id"], folder, names=[name], on_bytes=lambda *piece, told=told: told.append(piece)
            )
            assert (folder / name).read_bytes() == content
            assert [path.name for path in folder.iterdir()] == [name]
            assert told[-1] == (name, len(content), len(content))


def test_the_job_and_its_answer_survive_a_restart_of_the_http_process(
    service: Service, tmp_path: Path
) -> None:
    path = write_job(tmp_path, labels={"test.engine": "hold:3"})
    process = subprocess.Popen(
        command(service, "run", path),
        env=environ(service),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    job_id = process.stderr.readline().split()[1].rstrip(":")
    service.wait_state(job_id, "running")
    os.kill(service.pid_of("api"), signal.SIGKILL)
    _, said = process.communicate(timeout=200)
    assert process.returncode == 0, said


def test_detached_it_prints_the_id_alone(service: Service, tmp_path: Path) -> None:
    for verb in (["run", "--detach"], ["submit"]):
        done = call(service, *verb, write_job(tmp_path))
        assert done.returncode == 0, done.stderr
        assert service.job(done.stdout.strip())["kind"] == "prune"
        service.wait_end(done.stdout.strip())


@pytest.mark.parametrize(("verdict", "code"), [("pass", 0), ("fail", 1), ("inconclusive", 2), ("none", 0)])
def test_the_exit_code_of_a_verdict(verdict: str, code: int) -> None:
    assert exit_code({"state": "succeeded", "verdict": verdict}) == code  # type: ignore[typeddict-item]
