"""Jobs that memory is too small for: streamed, resumed after a kill, with the bytes of an undisturbed run."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.tiny import write_tiny_llama, write_word_tokenizer

from .harness import Service, running, wait_for

pytestmark = [pytest.mark.server, pytest.mark.slow, pytest.mark.timeout(900)]

#: Less than the weights of the model ``large`` alone, and than the process of any prune in memory is counted
#: with; more than a streamed one takes.
LIMIT = 560_000_000
LARGE = {"hidden": 896, "intermediate": 1280, "layers": 25}
SECRET_WORDS = "w7 w9 w11 w13"
TEXTS = [
    f"w{i % 20 + 2} w{i % 17 + 3} w{i % 13 + 5} {SECRET_WORDS} w{i % 7 + 2} w{i % 5 + 4}" for i in range(24)
]
CALIBRATION = {"texts": TEXTS, "max_length": 10, "num_samples": 24, "batch_size": 4}
EVALUATION = {"texts": [" ".join(TEXTS)], "max_length": 10}
REFITTED = {
    "neuron_selection_method": "OBS",
    "compensation": "least_squares",
    "calibration": CALIBRATION,
    "evaluation": EVALUATION,
}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service whose jobs may take less memory than any prune in memory is estimated to take."""
    data_dir = tmp_path_factory.mktemp("service") / "data"
    models = data_dir / "models"
    large = write_word_tokenizer(write_tiny_llama(models / "large", **LARGE))
    assert (large / "model.safetensors").stat().st_size > LIMIT
    write_word_tokenizer(write_tiny_llama(models / "tiny"))
    with running(data_dir, OPTIPFAIR_MEMORY_BYTES=str(LIMIT)) as started:
        yield started


@contextmanager
def peak_private_memory(service: Service) -> Iterator[list[int]]:
    """The private bytes of the engine's process, looked at again and again while the block lasts.

    Pages of mapped files are not among them, which the system may take away, nor those that it shares with
    the server that it was forked from.
    """
    seen, over = list[int](), threading.Event()

    def look() -> None:
        while not over.wait(0.02):
            pid = service.engine_pid()
            with suppress(OSError):
                if pid is not None:
                    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
                    seen.extend(
                        int(line.split()[1]) * 1024 for line in lines if line.startswith("Anonymous:")
                    )

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


def manifest_of(service: Service, job_id: str) -> dict[str, Any]:
    path = f"/v1/jobs/{job_id}/artifacts/optipfair_manifest.json/links"
    return dict(httpx.get(service.client.post(path, json={}).json()["url"]).json())


SHORT = {"evaluation": {**EVALUATION, "num_windows": 2}, "layer_indices": [0, 9]}


@pytest.mark.parametrize(
    "spec",
    [SHORT, {**REFITTED, **SHORT, "calibration": {**CALIBRATION, "num_samples": 8}}],
    ids=["static", "calibrated"],
)
def test_what_memory_is_too_small_for_is_streamed(service: Service, spec: dict[str, Any]) -> None:
    spec = {"model": {"source": "local", "name": "large"}, "pruning_percentage": 25, **spec}
    wait_for(lambda: "large" in str(service.get("/v1/models")), "the large model to be listed")
    estimate = service.client.post("/v1/jobs:validate", json={"kind": "prune", "spec": spec}).json()
    assert estimate["execution"] == "streamed"
    assert estimate["peak_memory_bytes"] <= LIMIT
    with peak_private_memory(service) as seen:
        job_id = service.post_job(spec=spec)
        job = service.wait_end(job_id)
    assert job["state"] == "succeeded", job["error"]
    assert (job["execution"], job["execution_reason"]) == ("streamed", estimate["reason"])
    metrics = service.get(f"/v1/jobs/{job_id}/metrics")
    assert metrics["perplexity_ratio"] == pytest.approx(
        metrics["perplexity_pruned"] / metrics["perplexity_dense"]
    )
    manifest = manifest_of(service, job_id)
    assert (manifest["execution"], manifest["reload_check"]) == ("streamed", "structure")
    assert "structure is checked" in manifest["execution_reason"]
    assert seen
    assert 50_000_000 < max(seen) < LIMIT
    assert not list((service.data_dir / "work" / "states").glob(f"{job_id}*"))


def test_each_of_several_processes_counts(service: Service) -> None:
    spec = {"model": {"source": "local", "name": "tiny"}, "pruning_percentage": 25, **REFITTED}
    answer = service.client.post(
        "/v1/jobs:validate", json={"kind": "prune", "spec": {**spec, "processes": 2}}
    )
    assert (answer.status_code, answer.json()["code"]) == (422, "model_too_large")
    assert service.client.post("/v1/jobs:validate", json={"kind": "prune", "spec": spec}).status_code == 200


def test_what_neither_way_can_do_is_refused(service: Service) -> None:
    spec = {"model": {"source": "local", "name": "tiny"}, "pruning_percentage": 25, "dtype": "float16"}
    answer = service.client.post("/v1/jobs:validate", json={"kind": "prune", "spec": spec})
    assert (answer.status_code, answer.json()["code"]) == (422, "model_too_large")
    assert "dtype float16" in answer.json()["errors"][0]["detail"]


def test_a_worker_killed_in_mid_calibration_is_followed_by_one_that_goes_on(service: Service) -> None:
    undisturbed = service.post_job(spec=REFITTED)
    assert service.wait_end(undisturbed)["state"] == "succeeded"
    job_id = service.post_job(spec=REFITTED, labels={"test.calibrate": "hold:60"})
    wait_for(lambda: calibrated(service, job_id, 1), "the first layer to be finished")
    os.kill(service.pid_of("worker"), signal.SIGKILL)
    job = service.wait_end(job_id)
    assert (job["state"], job["attempt"]) == ("succeeded", 2), job["error"]
    (resumed,) = service.events(job_id, "resumed")
    assert (resumed["attempt"], resumed["data"]) == (2, {"layer": 1})
    assert calibrated(service, job_id, 2) == [2]  # layer 1 of 2, and no other
    assert results(service, job_id) == results(service, undisturbed)
    wait_for(lambda: not list((service.data_dir / "work" / "states").glob(f"{job_id}*")), "its state to go")


def calibrated(service: Service, job_id: str, attempt: int) -> list[int]:
    """After which layers of a calibration an attempt has reported."""
    progress = [e for e in service.events(job_id, "progress") if e["attempt"] == attempt]
    return [e["data"]["done"] for e in progress if e["data"]["stage"] == "calibrate"]


def results(service: Service, job_id: str) -> dict[str, bytes]:
    """All files but the metrics, which tell the time that it took."""
    files = service.download(job_id)
    return {name: content for name, content in files.items() if name != "metrics.json"}


def test_a_cancelled_jobs_state_goes_and_its_log_stays(service: Service) -> None:
    job_id = service.post_job(spec=REFITTED, labels={"test.calibrate": "hold:60"})
    wait_for(lambda: calibrated(service, job_id, 1), "the first layer to be finished")
    states = service.data_dir / "work" / "states"
    assert (states / job_id / "job" / "progress.json").is_file()
    service.client.post(f"/v1/jobs/{job_id}/cancel")
    assert service.wait_end(job_id)["state"] == "cancelled"
    wait_for(lambda: not list(states.glob(f"{job_id}*")), "its state to go")
    log = service.client.get(f"/v1/jobs/{job_id}/logs")
    assert log.headers["content-type"].startswith("text/plain")
    assert "execution: streamed" in log.text
    assert "the job was cancelled" in log.text
    assert SECRET_WORDS not in log.text
    assert str(service.data_dir) not in log.text
    last = service.client.get(f"/v1/jobs/{job_id}/logs?tail=1").text
    assert last == log.text.splitlines()[-1] + "\n"
    assert service.client.get(f"/v1/jobs/{job_id}/logs?attempt=1").text == log.text
    assert service.client.get(f"/v1/jobs/{job_id}/logs?attempt=2").status_code == 404


def test_a_followed_log_ends_with_the_job_and_says_what_the_text_says(service: Service) -> None:
    job_id = service.post_job(spec=REFITTED, labels={"test.calibrate": "hold:1"})
    lines = list(follow(service, job_id))
    assert [line for _, line in lines] == service.client.get(f"/v1/jobs/{job_id}/logs").text.splitlines()
    assert service.job(job_id)["terminal"]
    place, _ = lines[-2]
    assert list(follow(service, job_id, **{"Last-Event-ID": place})) == lines[-1:]


def follow(service: Service, job_id: str, **headers: str) -> Iterator[tuple[str, str]]:
    """The ids and lines of a job's stream of log lines, to its end."""
    asked = {"Accept": "text/event-stream", **headers}
    place = ""
    with service.client.stream(
        "GET", f"/v1/jobs/{job_id}/logs", headers=asked, timeout=httpx.Timeout(60)
    ) as answer:
        for line in answer.iter_lines():
            name, _, text = line.partition(": ")
            if name == "id":
                place = text
            elif name == "data":
                data = text
            elif line == "" and place:
                yield place, data
                place = ""


def test_an_engine_that_fails_leaves_a_log_without_paths(service: Service, tmp_path: Path) -> None:
    service.add_model("broken", nan_in="model.layers.1.mlp.up_proj.weight")
    job_id = service.post_job(spec={"model": {"source": "local", "name": "broken"}})
    assert service.wait_end(job_id)["state"] == "failed"
    text = service.client.get(f"/v1/jobs/{job_id}/logs").text
    assert "weights_not_finite" in text
    assert "NonFiniteWeightsError" in text
    assert "/" not in text.replace(" 1/2:", "").replace("0/1", "").partition("the engine failed")[2]
