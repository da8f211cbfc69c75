"""An API and two workers that share nothing but Postgres, a broker and an S3 store.

Each process has a data folder of its own; each worker has one model that the other lacks. The processes are
started by the commands that an operator would use.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from jobs.artifacts import make_store
from jobs.settings import Settings
from tests.servers import S3, Postgres, free_port, s3_server, stop, valkey
from tests.tiny import write_tiny_llama

pytestmark = [pytest.mark.slow, pytest.mark.server]
SERVICE = [sys.executable, "-m", "service.cli"]
PATIENCE = 120.0


def wait_for(condition: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited {PATIENCE:.0f} s for {what}"
        time.sleep(0.1)
    return found


@dataclass
class Site:
    """The whole of it, and a client with the admin key."""

    home: Path
    environment: dict[str, str]
    client: httpx.Client
    settings: Settings

    def post(self, model: str, **body: Any) -> dict[str, Any]:
        spec = {"model": {"source": "local", "name": model}, "pruning_percentage": 25}
        answer = self.client.post("/v1/jobs", json={"kind": "prune", "spec": spec, **body})
        assert answer.status_code == 202, answer.text
        return dict(answer.json())

    def ended(self, job: dict[str, Any]) -> dict[str, Any]:
        def look() -> dict[str, Any] | None:
            found = dict(self.client.get(f"/v1/jobs/{job['id']}").json())
            return found if found["terminal"] else None

        return dict(wait_for(look, f"job {job['id']} to end"))

    def archive(self, job: dict[str, Any]) -> tuple[bytes, dict[str, Any]]:
        link = self.client.post(f"/v1/jobs/{job['id']}/artifacts/*/links", json={}).json()
        return httpx.get(link["url"], timeout=30).content, link

    def stored(self) -> set[tuple[str, int]]:
        return {(folder.job_id, folder.attempt) for folder in make_store(self.settings).folders()}


def environment_of(data_dir: Path, database_url: str, broker_url: str, s3: S3, port: int) -> dict[str, str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("OPTIPFAIR_")}
    settings = {
        "data_dir": data_dir,
        "database_url": database_url,
        "broker_url": broker_url,
        "artifacts_url": f"s3://{s3.bucket}/prefix",
        "artifacts_s3_endpoint": s3.endpoint,
        "artifacts_s3_access_key": s3.access_key,
        "artifacts_s3_secret_key": s3.secret_key,
        "port": port,
        "threads": 1,
        "min_free_bytes": 0,
        "sweep_seconds": 1,
        "grace_seconds": 1,
    }
    ours = {f"OPTIPFAIR_{key.upper()}": str(value) for key, value in settings.items()}
    return {**clean, **ours, "OMP_NUM_THREADS": "1"}


def run(environment: dict[str, str], *arguments: str) -> str:
    command = [*SERVICE, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def site(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    home = tmp_path_factory.mktemp("site")
    database_url, port = postgres.create_database("distributed"), free_port()
    with ExitStack() as stack:
        broker, s3 = stack.enter_context(valkey()), stack.enter_context(s3_server())
        environments = {
            name: environment_of(home / name, database_url, broker.url, s3, port)
            for name in ("api", "w1", "w2")
        }
        for name, model in (("w1", "left"), ("w2", "right")):
            write_tiny_llama(home / name / "models" / model)
        run(environments["api"], "migrate")
        for name, verb in (("w1", "worker"), ("w2", "worker"), ("api", "api")):
            log = stack.enter_context((home / f"{name}.log").open("w"))
            process = subprocess.Popen([*SERVICE, verb], env=environments[name], stdout=log, stderr=log)
            stack.callback(stop, process, signal.SIGTERM)
        key = admin_key(home, environments["api"])
        client = stack.enter_context(
            httpx.Client(
                base_url=f"http://127.0.0.1:{port}", headers={"Authorization": f"Bearer {key}"}, timeout=30
            )
        )
        made = Site(home, environments["api"], client, settings_of(environments["api"]))
        wait_for(lambda: models_of(client) == {"left", "right"}, "both workers to report their models")
        yield made


def admin_key(home: Path, environment: dict[str, str]) -> str:
    wait_for(lambda: (home / "api" / "secret").is_file(), "the API to make its secret")
    out = run(environment, "keys", "create", "--tenant", "acme", "--scope", "admin")
    return next(word for word in out.split() if word.startswith("ofk_"))


def settings_of(environment: dict[str, str]) -> Settings:
    names = {
        key.removeprefix("OPTIPFAIR_").lower(): value
        for key, value in environment.items()
        if key.startswith("OPTIPFAIR_")
    }
    return Settings(**names)  # type: ignore[arg-type]


def models_of(client: httpx.Client) -> set[str]:
    try:
        return {item["name"] for item in client.get("/v1/models").json()["items"]}
    except (httpx.HTTPError, KeyError, ValueError):
        return set()


def test_each_job_is_done_by_the_worker_that_has_its_model(site: Site) -> None:
    jobs = [(model, site.post(model)) for model in ("left", "right", "left", "right")]
    done_by = set()
    for model, job in jobs:
        ended = site.ended(job)
        assert ended["state"] == "succeeded", ended
        (attempt,) = site.client.get(f"/v1/jobs/{job['id']}/attempts").json()["items"]
        done_by.add((model, attempt["worker_id"] if "worker_id" in attempt else attempt["worker"]))
    assert len(done_by) == 2, done_by


def test_the_archive_from_s3_is_what_its_link_promises(site: Site) -> None:
    job = site.ended(site.post("left"))
    content, link = site.archive(job)
    assert hashlib.sha256(content).hexdigest() == link["sha256"]
    part = httpx.get(link["url"], headers={"Range": "bytes=100-4000"}, timeout=30)
    assert (part.status_code, part.content) == (206, content[100:4001])
    listed = {item["name"]: item for item in site.client.get(f"/v1/jobs/{job['id']}/artifacts").json()}
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        files = {member.name.partition("/")[2]: tar.extractfile(member) for member in tar if member.isfile()}
        assert set(files) == set(listed)
        for name, file in files.items():
            assert file is not None
            assert hashlib.sha256(file.read()).hexdigest() == listed[name]["sha256"]
    assert json.loads(site.client.get(f"/v1/jobs/{job['id']}/metrics").text)["pruned_parameters"] > 0


def test_the_workers_keep_nothing_and_a_deletion_empties_the_store(site: Site) -> None:
    job = site.ended(site.post("right"))
    assert (job["id"], 1) in site.stored()
    for name in ("w1", "w2"):
        left = [path for path in (site.home / name).rglob("*") if job["id"] in str(path) and path.is_file()]
        assert left == []
    assert site.client.delete(f"/v1/jobs/{job['id']}").status_code == 204
    assert (job["id"], 1) not in site.stored()


def test_equal_work_is_found_again(site: Site) -> None:
    first = site.ended(site.post("left"))
    again = site.post("left", reuse=True, labels={"run": "again"})
    assert again["state"] == "succeeded"
    assert again["id"] != first["id"]
    content, link = site.archive(again)
    assert hashlib.sha256(content).hexdigest() == link["sha256"]


def test_a_model_that_no_worker_has_is_refused(site: Site) -> None:
    spec = {"model": {"source": "local", "name": "nowhere"}, "pruning_percentage": 25}
    answer = site.client.post("/v1/jobs", json={"kind": "prune", "spec": spec})
    assert (answer.status_code, answer.json()["code"]) == (422, "model_not_found")
