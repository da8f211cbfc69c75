"""The main job through a real service: HTTP in, a pruned checkpoint out, and each failure with its code."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.servers import free_port
from tests.suite_files import CROWS, write_suites
from tests.tiny import (
    INTERMEDIATE,
    LAYERS,
    byte_tokenizer,
    tiny_llama,
    word_tokenizer,
    write_checkpoint,
    write_tiny_llama,
)

from .harness import Service, wait_for

pytestmark = [
    pytest.mark.server,
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.xdist_group("service"),
]


def test_a_pruned_checkpoint_comes_back_through_signed_links(service: Service, tmp_path: Path) -> None:
    job_id = service.post_job()
    job = service.wait_end(job_id)
    assert job["state"] == "succeeded", job["error"]
    files = service.download(job_id)
    assert {"config.json", "model.safetensors", "plan.json", "metrics.json", "README.md"} <= set(files)
    config = json.loads(files["config.json"])
    assert config["intermediate_size"] < INTERMEDIATE
    metrics = service.get(f"/v1/jobs/{job_id}/metrics")
    assert metrics["reload_check"] == "logits"
    assert metrics["pruned_parameters"] < metrics["original_parameters"]
    sums = service.client.get(f"/v1/jobs/{job_id}/manifest").text.splitlines()
    assert {line.split()[1].lstrip("*"): line.split()[0] for line in sums} == {
        name: hashlib.sha256(content).hexdigest() for name, content in files.items()
    }


def test_progress_rises_layer_by_layer_and_success_is_told_once(service: Service) -> None:
    job_id = service.post_job()
    service.wait_end(job_id)
    progress = [event["data"] for event in service.events(job_id, "progress")]
    fractions = [data["fraction"] for data in progress]
    assert fractions == sorted(fractions)
    for stage in ("select", "prune"):
        assert len([data for data in progress if data["stage"] == stage]) >= LAYERS
    assert len(service.events(job_id, "succeeded")) == 1
    assert service.stored_folders(job_id) == [f"{job_id}/1"]


def test_weights_that_are_not_finite_fail_the_job_at_once_and_name_the_tensor(service: Service) -> None:
    tensor = "model.layers.1.mlp.up_proj.weight"
    service.add_model("broken", nan_in=tensor)
    job_id = service.post_job(spec={"model": {"source": "local", "name": "broken"}})
    job = service.wait_end(job_id)
    assert (job["state"], job["attempt"]) == ("failed", 1)
    assert job["error"]["code"] == "weights_not_finite"
    assert tensor in job["error"]["message"]
    wait_for(lambda: not service.stored_folders(job_id), "its files to be removed")


def test_a_model_that_is_added_while_the_service_runs_is_seen_within_seconds(service: Service) -> None:
    service.add_model("later")
    body = {"kind": "analyze", "spec": {"model": {"source": "local", "name": "later"}}}
    answer = service.client.post("/v1/jobs:validate", json=body)
    assert answer.status_code == 200, answer.text


def test_a_model_that_is_truncated_is_refused_at_the_door(service: Service) -> None:
    folder = write_tiny_llama(service.data_dir / "models" / "curtailed")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    wait_for(lambda: "curtailed" in str(service.get("/v1/models")), "the new model to be seen")
    spec = {"model": {"source": "local", "name": "curtailed"}, "pruning_percentage": 25}
    answer = service.client.post("/v1/jobs", json={"kind": "prune", "spec": spec})
    assert (answer.status_code, answer.json()["code"]) == (422, "model_truncated")


def test_an_earlier_jobs_checkpoint_can_be_pruned_again(service: Service) -> None:
    first = service.post_job()
    service.wait_end(first)
    second = service.post_job(spec={"model": {"source": "job", "job_id": first}})
    job = service.wait_end(second)
    assert job["state"] == "succeeded", job["error"]
    sizes = [service.get(f"/v1/jobs/{job_id}/metrics")["pruned_parameters"] for job_id in (first, second)]
    assert sizes[1] < sizes[0]


def test_a_pipeline_prunes_and_compares_in_one_job(service: Service) -> None:
    steps = [
        {
            "name": "small",
            "kind": "prune",
            "spec": {"model": {"source": "local", "name": "tiny"}, "pruning_percentage": 25},
        },
        {"name": "look", "kind": "analyze", "spec": {"model": {"source": "step", "name": "small"}}},
    ]
    gates = [{"metric": "small.reduction", "min": 1}]
    body = {"kind": "pipeline", "spec": {"steps": steps}, "gates": gates}
    created = service.client.post("/v1/jobs", json=body)
    assert created.status_code == 202, created.text
    job = service.wait_end(created.json()["id"])
    assert (job["state"], job["verdict"]) == ("succeeded", "pass"), job["error"]
    names = {artifact["name"] for artifact in service.get(f"/v1/jobs/{job['id']}/artifacts")}
    assert {"small.model.safetensors", "small.config.json", "look.metrics.json", "metrics.json"} <= names
    metrics = service.get(f"/v1/jobs/{job['id']}/metrics")
    assert metrics["look.parameters"] == metrics["small.pruned_parameters"]


def test_four_suites_are_one_job_with_one_verdict(service: Service) -> None:
    write_suites(service.data_dir / "suites")
    tokenizer = byte_tokenizer([CROWS])
    written = write_checkpoint(service.data_dir / "reads", tiny_llama(vocab_size=len(tokenizer)), tokenizer)
    written.rename(service.data_dir / "models" / "reads")
    wait_for(lambda: "reads" in str(service.get("/v1/models")), "the new model to be seen")
    suites = ("crows_pairs", "stereoset", "winobias", "winogender")

    def all_there() -> bool:
        items = service.get("/v1/suites")["items"]
        return set(suites) <= {
            item["name"] for item in items if item["source"] == "catalogue" and item["queues"]
        }

    wait_for(all_there, "the suites' files to be seen")
    metrics = ("crows_pairs.race.score", "stereoset.lms", "winobias.gap", "winogender.gap")
    gates = [{"metric": metric, "min": -100, "max": 100} for metric in metrics]
    job = service.wait_end(
        service.post_job(
            "bias", {"model": {"source": "local", "name": "reads"}, "suites": suites}, gates=gates
        )
    )
    assert (job["state"], job["verdict"]) == ("succeeded", "pass"), job
    found = service.get(f"/v1/jobs/{job['id']}/metrics")
    assert {name.split(".")[0] for name in found if "." in name} == set(suites)


def test_a_pipeline_goes_on_from_the_step_that_failed(service: Service) -> None:
    text = service.data_dir / "calibration" / "fleeting.txt"
    text.parent.mkdir(exist_ok=True)
    text.write_text("the nurse sat the baker stood " * 30)
    words = ["<unk>", "<eos>", "the", "nurse", "baker", "sat", "stood"]
    tokenizer = word_tokenizer(words, unk_token="<unk>", eos_token="<eos>")
    written = write_checkpoint(service.data_dir / "worded", tiny_llama(vocab_size=len(words)), tokenizer)
    written.rename(service.data_dir / "models" / "worded")
    wait_for(lambda: "fleeting" in str(service.get("/v1/calibrations")), "the new text to be seen")
    wait_for(lambda: "worded" in str(service.get("/v1/models")), "the new model to be seen")
    measured = {"source": "local", "name": "fleeting.txt", "max_length": 16, "num_windows": 2}
    small = {"source": "step", "name": "small"}
    steps = [
        {
            "name": "small",
            "kind": "prune",
            "spec": {"model": {"source": "local", "name": "worded"}, "pruning_percentage": 25},
        },
        {"name": "measure", "kind": "evaluate", "spec": {"model": small, "text": measured}},
    ]
    body = {"kind": "pipeline", "spec": {"steps": steps}, "labels": {"test.engine": "hold:2"}}
    job_id = service.client.post("/v1/jobs", json=body).json()["id"]
    text.rename(text.with_suffix(".away"))
    job = service.wait_end(job_id)
    assert (job["state"], job["error"]["code"]) == ("failed", "input_not_found")
    assert job["kept_steps"] == ["small"] and job["links"]["metrics"]
    before = service.download(job_id)
    assert {"small.model.safetensors", "small.config.json", "metrics.json"} <= set(before)
    assert service.get(f"/v1/jobs/{job_id}/metrics")["small.reduction"] > 0
    # what is kept is a model for other jobs
    spec = {"model": {"source": "job", "job_id": job_id, "step": "small"}}
    assert service.wait_end(service.post_job("analyze", spec))["state"] == "succeeded"
    text.with_suffix(".away").rename(text)
    assert service.client.post(f"/v1/jobs/{job_id}/retry").status_code == 202
    job = service.wait_end(job_id)
    assert (job["state"], job["attempt"], job["kept_steps"]) == ("succeeded", 2, []), job["error"]
    (resumed,) = service.events(job_id, "resumed")
    assert resumed["data"] == {"step": "measure", "finished_steps": ["small"]}
    ran = {event["data"]["stage"] for event in service.events(job_id, "progress") if event["attempt"] == 2}
    assert len(ran) > 1 and all(stage.startswith("measure:") for stage in ran - {"store"})
    after = service.download(job_id)
    assert after["small.model.safetensors"] == before["small.model.safetensors"]
    assert {"measure.metrics.json", "small.config.json"} <= set(after)
    wait_for(lambda: service.stored_folders(job_id) == [f"{job_id}/2"], "the earlier folder to be removed")


def test_cancelling_a_running_job_ends_its_engine(service: Service) -> None:
    job_id = service.post_job(labels={"test.engine": "hold:60"})
    service.wait_state(job_id, "running")
    engine = wait_for(service.engine_pid, "the engine process")
    assert service.client.post(f"/v1/jobs/{job_id}/cancel").status_code == 202
    job = service.wait_end(job_id)
    assert job["state"] == "cancelled"
    assert service.engine_pid() != engine


def test_the_worker_and_the_engine_know_no_secret_of_the_api(service: Service) -> None:
    job_id = service.post_job(labels={"test.engine": "hold:60"})
    engine = wait_for(service.engine_pid, "the engine process")
    environments = {
        name: Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
        for name, pid in (("worker", service.pid_of("worker")), ("engine", engine))
    }
    key = (service.data_dir / "admin.key").read_text().strip()
    for text in environments.values():
        assert "OPTIPFAIR_SECRET_FILE" not in text
        assert key not in text
    assert "OPTIPFAIR_" not in environments["engine"]  # neither database nor broker nor store
    maps = Path(f"/proc/{service.pid_of('worker')}/maps").read_text()
    assert "libtorch" not in maps  # the Celery process never imports torch
    service.client.post(f"/v1/jobs/{job_id}/cancel")
    service.wait_end(job_id)


def test_downloads_need_no_key_and_support_ranges(service: Service) -> None:
    job_id = service.post_job()
    service.wait_end(job_id)
    link = service.client.post(f"/v1/jobs/{job_id}/artifacts/model.safetensors/links", json={}).json()
    whole = httpx.get(link["url"]).content
    part = httpx.get(link["url"], headers={"Range": "bytes=10-19"})
    assert part.status_code == 206
    assert part.content == whole[10:20]


def test_a_short_job_does_not_wait_behind_a_long_one(
    start: Callable[..., AbstractContextManager[Service]],
) -> None:
    long_spec = {"evaluation": {"texts": ["a text to measure on"]}}  # what is measured may take long
    with start(OPTIPFAIR_SHORT_WORKERS="1") as service:
        wait_for(lambda: service.client.get("/v1/models").json()["items"], "a worker that has the model")
        both = 'optipfair_workers{queue="short"} 2.0'
        wait_for(lambda: both in service.client.get("/metrics").text, "both workers to report themselves")
        long = [service.post_job(spec=long_spec, labels={"test.engine": "hold:120"}) for _ in range(2)]
        service.wait_state(long[0], "running")
        short = service.wait_end(service.post_job("analyze"))
        assert short["state"] == "succeeded", short["error"]
        assert [service.job(job_id)["state"] for job_id in long] == ["running", "queued"]


@pytest.mark.skipif(shutil.which("prometheus") is None, reason="Prometheus (a Debian package) is not here")
def test_prometheus_scrapes_it_and_the_dashboards_queries_answer(service: Service, tmp_path: Path) -> None:
    (tmp_path / "key").write_text((service.data_dir / "admin.key").read_text())
    target = {"targets": [service.url.removeprefix("http://")]}
    scrape = {"job_name": "optipfair", "static_configs": [target]}
    scrape |= {"authorization": {"credentials_file": str(tmp_path / "key")}}
    config = {"global": {"scrape_interval": "1s"}, "scrape_configs": [scrape]}
    (tmp_path / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML
    address = f"127.0.0.1:{free_port()}"
    files = [f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data"]
    process = subprocess.Popen(
        ["prometheus", *files, f"--web.listen-address={address}"], stderr=subprocess.DEVNULL
    )

    def ask(query: str) -> list[Any]:
        with suppress(httpx.TransportError):
            answer = httpx.get(f"http://{address}/api/v1/query", params={"query": query})
            assert answer.status_code in (200, 503), (query, answer.text)  # 503 while it starts
            return list(answer.json()["data"]["result"]) if answer.status_code == 200 else []
        return []

    try:
        wait_for(lambda: ask('up{job="optipfair"} == 1'), "the first scrape")
        service.wait_end(service.post_job())
        counted = 'max(optipfair_jobs_ended_total{state="succeeded"}) >= 1'
        wait_for(lambda: ask(counted), "the job to be counted")
        twice = 'count_over_time(optipfair_jobs_ended_total{state="succeeded"}[1m]) >= 2'
        wait_for(lambda: ask(twice), "a second scrape of it, without which there is no increase")
        folder = Path(__file__).resolve().parents[2] / "deploy" / "monitoring"
        panels = json.loads((folder / "dashboard.json").read_text())["panels"]
        queries = [target["expr"] for panel in panels for target in panel.get("targets", ())]
        silent = ("lost|preempted", "optipfair_webhooks", "max by (queue) (optipfair_queue_length)")
        for query in queries:
            found = ask(query.replace("$__rate_interval", "1m"))
            assert found or any(part in query for part in silent), query
    finally:
        process.terminate()
        process.wait(30)
