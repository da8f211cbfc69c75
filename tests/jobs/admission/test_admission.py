"""Admission: by what live workers report, and by nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import Engine, update

from jobs.admission import admit
from jobs.admission.routing import is_better_elsewhere
from jobs.database import writing
from jobs.errors import InvalidError, NoWorkerError
from jobs.ids import new_id
from jobs.repository import Repository
from jobs.rows import Artifact, Job, JobError, LocalModel, Worker
from jobs.specs import parse_request
from jobs.tables import jobs, outbox
from tests.jobs.conftest import TENANT

pytestmark = pytest.mark.parametrize("engine", ["sqlite"], indirect=True)

FACTS: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "num_layers": 4,
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 1000,
    "parameters": 400_000,
    "bytes": 800_000,
    "dtype": "bfloat16",
    "format": "safetensors",
    "has_tokenizer": True,
    "files": {"model.safetensors": 800_000},
    "revision": "r1",
}
TINY = LocalModel("tiny", "r1", FACTS)
PICKLED = LocalModel("old", None, {}, JobError("model_pickled", "only pickled weights"))
WORKER = Worker(
    id="w1",
    queues=["cpu", "short"],
    devices=["cpu"],
    models=[TINY, PICKLED],
    files={"calibration": ["wiki.txt"], "suites": ["crows.csv"]},
    allow_hub=False,
    code_version="1",
    draining=False,
    started_at=0,
    seen_at=0,
)
GPU = replace(WORKER, id="g1", queues=["gpu"], devices=["cpu", "cuda"])


def beat(repository: Repository, *workers: Worker) -> None:
    for w in workers:
        repository.worker_beat(
            w.id,
            queues=w.queues,
            devices=w.devices,
            models=w.models,
            files=w.files,
            allow_hub=w.allow_hub,
            code_version=w.code_version,
            draining=w.draining,
            memory_bytes=w.memory_bytes,
        )


def prune(name: str = "tiny", **spec: Any) -> Any:
    model = {"source": "local", "name": name}
    return parse_request({"kind": "prune", "spec": {"model": model, "pruning_percentage": 20, **spec}})


def refusal(repository: Repository, request: Any) -> InvalidError:
    with pytest.raises(InvalidError) as caught:
        admit(repository, TENANT, request)
    return caught.value


def test_a_quick_prune_goes_to_the_queue_for_short_work_with_an_estimate(repository: Repository) -> None:
    beat(repository, WORKER)
    admission = admit(repository, TENANT, prune())
    assert admission.queue == "short"
    assert admission.estimate is not None
    assert 0 < admission.estimate.output_bytes < FACTS["bytes"]
    assert admission.estimate.seconds > 0
    assert admission.reuse_key is not None


def test_short_work_has_a_queue_of_its_own(repository: Repository) -> None:
    beat(repository, WORKER)
    request = parse_request({"kind": "analyze", "spec": {"model": {"source": "local", "name": "tiny"}}})
    assert admit(repository, TENANT, request).queue == "short"
    beat(repository, replace(WORKER, queues=["cpu"]))
    assert admit(repository, TENANT, request).queue == "cpu"


@pytest.mark.parametrize(
    "spec",
    [
        {"calibration": {"texts": ["a text"]}, "preset": "recommended"},
        {"evaluation": {"texts": ["a text"]}},
        {"model": {"source": "local", "name": "large"}},
    ],
)
def test_a_prune_that_may_take_long_is_no_short_work(repository: Repository, spec: dict[str, Any]) -> None:
    large = LocalModel("large", "r1", {**FACTS, "bytes": 10**11, "parameters": 5 * 10**10})
    beat(repository, replace(WORKER, models=[TINY, large]))
    assert admit(repository, TENANT, prune(**spec)).queue == "cpu"


def test_short_work_that_needs_more_memory_than_the_worker_for_it_has_goes_elsewhere(
    repository: Repository,
) -> None:
    small = replace(WORKER, id="w2", queues=["short"], memory_bytes=1_000_000)
    beat(repository, small, replace(WORKER, queues=["cpu"], memory_bytes=10**12))
    assert admit(repository, TENANT, prune()).queue == "cpu"
    beat(repository, small, replace(WORKER, queues=["cpu"], memory_bytes=1_000_000))
    assert refusal(repository, prune()).code == "model_too_large"


def test_a_gpu_is_taken_if_there_is_one_and_required_if_asked_for(repository: Repository) -> None:
    beat(repository, WORKER)
    assert refusal(repository, prune(device="cuda")).code == "device_unavailable"
    beat(repository, GPU)
    assert admit(repository, TENANT, prune(device="cuda")).queue == "gpu"
    assert admit(repository, TENANT, prune()).queue == "gpu"
    assert admit(repository, TENANT, prune(device="cpu")).queue == "short"


def test_a_job_goes_only_where_the_model_is(repository: Repository) -> None:
    beat(repository, replace(WORKER, models=[]), GPU)
    assert refusal(repository, prune(device="cpu")).code == "device_unavailable"
    assert admit(repository, TENANT, prune()).queue == "gpu"


@pytest.mark.parametrize(
    ("request_", "code", "location"),
    [
        (prune("absent"), "model_not_found", ("spec", "model", "name")),
        (prune("old"), "model_pickled", ("spec", "model", "name")),
        (
            prune(calibration={"source": "local", "name": "no.txt"}),
            "calibration_not_found",
            ("spec", "calibration", "name"),
        ),
        (prune(calibration={"source": "hub", "dataset": "a/b"}), "hub_not_allowed", ("spec", "calibration")),
        (prune(evaluation={"source": "local", "name": "no.txt"}), "calibration_not_found", None),
        (prune(layer_indices=[4]), "layers_out_of_range", ("spec", "layer_indices")),
        (prune(model={"source": "job", "job_id": new_id()}), "model_not_found", ("spec", "model", "job_id")),
        (prune(plan={"job_id": new_id()}), "model_not_found", ("spec", "plan", "job_id")),
    ],
)
def test_refusals_say_why_and_where(
    repository: Repository, request_: Any, code: str, location: tuple[str, ...] | None
) -> None:
    beat(repository, WORKER)
    error = refusal(repository, request_)
    assert error.code == code
    assert error.location == (location or error.location)
    assert error.location[0] == "spec"


def test_every_step_of_a_pipeline_is_looked_at(repository: Repository) -> None:
    beat(repository, WORKER)
    local = {"source": "local", "name": "tiny"}
    steps = [
        {"name": "p", "kind": "prune", "spec": {"model": local, "pruning_percentage": 20}},
        {"name": "b", "kind": "bias", "spec": {"model": {"source": "step", "name": "p"}, "baseline": local}},
        {"name": "s", "kind": "bias", "spec": {"model": local, "suite": "crows.csv"}},
    ]
    admission = admit(repository, TENANT, parse_request({"kind": "pipeline", "spec": {"steps": steps}}))
    assert admission.estimate is not None
    steps[2]["spec"]["suite"] = "other.csv"  # type: ignore[index]
    error = refusal(repository, parse_request({"kind": "pipeline", "spec": {"steps": steps}}))
    assert (error.code, error.location) == ("suite_not_found", ("spec", "steps", 2, "spec", "suite"))


def test_without_a_live_worker_nothing_is_admitted(repository: Repository) -> None:
    with pytest.raises(NoWorkerError):
        admit(repository, TENANT, prune())
    beat(repository, replace(WORKER, draining=True))
    with pytest.raises(NoWorkerError):
        admit(repository, TENANT, prune())


def test_what_cannot_fit_is_refused(repository: Repository) -> None:
    beat(repository, replace(WORKER, memory_bytes=1_000_000))
    assert refusal(repository, prune()).code == "model_too_large"
    beat(repository, replace(WORKER, id="w2", memory_bytes=10**12))
    assert admit(repository, TENANT, prune()).queue == "short"


def test_hub_models_go_to_workers_that_may_use_the_hub(repository: Repository) -> None:
    hub = prune(model={"source": "hub", "id": "org/model", "revision": "0" * 40})
    beat(repository, WORKER)
    assert refusal(repository, hub).code == "hub_not_allowed"
    beat(repository, replace(WORKER, id="w2", allow_hub=True))
    admission = admit(repository, TENANT, hub)
    assert admission.estimate is None  # its sizes are known only once it is fetched
    assert admission.reuse_key is not None


class TestReuseKeys:
    def key(self, repository: Repository, request: Any) -> str | None:
        return admit(repository, TENANT, request).reuse_key

    def test_labels_and_gates_do_not_make_other_work(self, repository: Repository) -> None:
        beat(repository, WORKER)
        body = {"kind": "prune", "spec": prune().spec.model_dump(), "labels": {"a": "b"}, "priority": 3}
        assert self.key(repository, parse_request(body)) == self.key(repository, prune())

    def test_another_spec_model_or_code_is_other_work(self, repository: Repository) -> None:
        beat(repository, WORKER)
        keys = [self.key(repository, prune()), self.key(repository, prune(seed=1))]
        beat(repository, replace(WORKER, models=[replace(TINY, revision="r2")]))
        keys.append(self.key(repository, prune()))
        beat(repository, replace(WORKER, code_version="2"))
        keys.append(self.key(repository, prune()))
        assert None not in keys
        assert len(set(keys)) == 4

    def test_where_equality_cannot_be_known_there_is_no_key(self, repository: Repository) -> None:
        beat(repository, WORKER)
        named = prune(calibration={"source": "local", "name": "wiki.txt"})
        assert self.key(repository, named) is None
        beat(repository, replace(WORKER, allow_hub=True))
        unpinned = prune(calibration={"source": "hub", "dataset": "a/b"})
        assert self.key(repository, unpinned) is None
        beat(repository, replace(WORKER, id="w2", code_version="2"))
        assert self.key(repository, prune()) is None
        beat(repository, replace(WORKER, id="w2", models=[replace(TINY, revision="r2")]))
        assert self.key(repository, prune()) is None


def test_a_job_can_follow_a_job(repository: Repository, create: Callable[..., Job]) -> None:
    beat(repository, WORKER)
    first = create()
    following = prune(model={"source": "job", "job_id": first.id})
    assert refusal(repository, following).code == "model_not_found"  # it has not succeeded yet
    repository.claim(first.id, "w")
    weights = Artifact("model.safetensors", "x/y", 600_000, "ab" * 32, f"{first.id}/1")
    repository.mark_succeeded(
        first.id,
        1,
        artifacts=[weights],
        archive=None,
        metrics={"pruned_parameters": 300_000},
        publish=lambda: None,
    )
    admission = admit(repository, TENANT, following)
    assert admission.estimate is not None
    assert admission.estimate.output_bytes < 600_000
    with pytest.raises(InvalidError):
        admit(repository, "other", following)


def test_analysing_a_model_needs_the_memory_to_load_it(repository: Repository) -> None:
    large = replace(TINY, facts={**FACTS, "bytes": 16 * 10**9, "parameters": 8 * 10**9})
    beat(repository, replace(WORKER, models=[large], memory_bytes=8 * 10**9))
    request = parse_request({"kind": "analyze", "spec": {"model": {"source": "local", "name": "tiny"}}})
    assert refusal(repository, request).code == "model_too_large"


def test_a_job_that_lost_layers_has_only_the_others(
    repository: Repository, create: Callable[..., Job]
) -> None:
    beat(repository, WORKER)
    first = create()
    repository.claim(first.id, "w")
    metrics = {"pruned_parameters": 300_000, "final_layer_count": 3}
    weights = Artifact("model.safetensors", "x/y", 600_000, "ab" * 32, f"{first.id}/1")
    repository.mark_succeeded(
        first.id, 1, artifacts=[weights], archive=None, metrics=metrics, publish=lambda: None
    )
    model = {"source": "job", "job_id": first.id}
    admit(repository, TENANT, prune(model=model, layer_indices=[2]))
    assert refusal(repository, prune(model=model, layer_indices=[3])).code == "layers_out_of_range"


@pytest.mark.parametrize(
    ("size", "removed"),
    [({"num_layers_to_remove": 2}, 2), ({"layer_indices": [0]}, 1), ({"depth_pruning_percentage": 50}, 2)],
    ids=str,
)
def test_a_step_that_removes_layers_leaves_the_others(
    repository: Repository, size: dict[str, Any], removed: int
) -> None:
    beat(repository, WORKER)

    def then(layer: int) -> Any:
        first = {"model": {"source": "local", "name": "tiny"}, "pruning_type": "DEPTH", **size}
        of_step = {"source": "step", "name": "a"}
        second = {"model": of_step, "layer_indices": [layer], "pruning_percentage": 10}
        steps = [{"name": "a", "spec": first}, {"name": "b", "spec": second}]
        body = {"kind": "pipeline", "spec": {"steps": [{"kind": "prune", **step} for step in steps]}}
        return parse_request(body)

    admit(repository, TENANT, then(4 - removed - 1))
    caught = refusal(repository, then(4 - removed))
    assert caught.location == ("spec", "steps", 1, "spec", "layer_indices")


@pytest.mark.parametrize("kind", ["bias", "evaluate"])
def test_a_small_model_beside_a_large_baseline_is_not_small_work(repository: Repository, kind: str) -> None:
    large = LocalModel("large", "r1", {**FACTS, "bytes": 10**9, "parameters": 5 * 10**8})
    beat(repository, replace(WORKER, models=[TINY, large]))

    def memory(model: str, baseline: str) -> int:
        spec: dict[str, Any] = {
            "model": {"source": "local", "name": model},
            "baseline": {"source": "local", "name": baseline},
        }
        if kind == "evaluate":
            spec["timing"] = True
        estimate = admit(repository, TENANT, parse_request({"kind": kind, "spec": spec})).estimate
        assert estimate is not None
        return estimate.peak_memory_bytes

    assert memory("tiny", "large") == memory("large", "tiny") > 10**9 > memory("tiny", "tiny")


class TestRouting:
    """Two workers serve one queue, and only one of them has the model."""

    def queued(self, repository: Repository) -> Job:
        job = repository.create_job(TENANT, prune(), queue="cpu")
        repository.mark_published(repository.take_outbox())
        return job

    def test_a_worker_leaves_a_job_to_one_that_has_the_model(self, repository: Repository) -> None:
        beat(repository, WORKER, replace(WORKER, id="w2", models=[]))
        job = self.queued(repository)
        assert not is_better_elsewhere(repository, job.id, "w1")
        assert is_better_elsewhere(repository, job.id, "w2")
        repository.claim(job.id, "w1")
        assert not is_better_elsewhere(repository, job.id, "w2")  # it is not queued any more
        assert not is_better_elsewhere(repository, new_id(), "w2")

    def test_a_worker_leaves_a_job_to_one_that_has_the_memory(self, repository: Repository) -> None:
        small, large = replace(WORKER, memory_bytes=1_000_000), replace(WORKER, id="w2", memory_bytes=10**12)
        beat(repository, small, large)
        job = self.queued(repository)
        assert is_better_elsewhere(repository, job.id, "w1")
        assert not is_better_elsewhere(repository, job.id, "w2")
        beat(repository, replace(large, memory_bytes=1_000_000))
        assert not is_better_elsewhere(repository, job.id, "w1")  # no one is better

    def test_if_nobody_has_it_the_job_is_not_passed_round_for_ever(self, repository: Repository) -> None:
        beat(repository, WORKER)
        job = self.queued(repository)
        beat(repository, replace(WORKER, models=[]), replace(WORKER, id="w2", models=[], queues=["gpu"]))
        assert not is_better_elsewhere(repository, job.id, "w1")
        beat(repository, replace(WORKER, id="w2", queues=["gpu"]))  # it has the model, but not this queue
        assert not is_better_elsewhere(repository, job.id, "w1")

    def test_a_spec_that_an_older_version_accepted_is_attempted(
        self, repository: Repository, engine: Engine
    ) -> None:
        beat(repository, WORKER, replace(WORKER, id="w2", models=[]))
        job = self.queued(repository)
        with writing(engine) as connection:
            connection.execute(update(jobs).values(spec=json.dumps({**job.spec, "keep_statistics": True})))
        assert not is_better_elsewhere(repository, job.id, "w2")

    def test_a_declined_job_is_published_again_once(self, repository: Repository, engine: Engine) -> None:
        job = self.queued(repository)
        for _ in range(2):
            repository.decline(job.id)
        assert repository.take_outbox() == []  # in a moment, not at once
        with writing(engine) as connection:
            assert connection.execute(update(outbox).values(taken_until=0)).rowcount == 1
        assert [entry.job_id for entry in repository.take_outbox()] == [job.id]
        repository.claim(job.id, "w1")
        repository.decline(job.id)
        assert repository.take_outbox() == []


def test_a_job_waits_for_a_sleeping_pool_that_had_its_model(repository: Repository, engine: Engine) -> None:
    mine = Repository(engine, repository.settings.model_copy(update={"sleeping_queues": "gpu"}))
    body = {"kind": "analyze", "spec": {"model": {"source": "local", "name": "tiny"}}}
    beat(mine, GPU)
    mine.worker_gone(GPU.id)
    assert admit(mine, TENANT, parse_request(body)).queue == "gpu"
    other = {"kind": "analyze", "spec": {"model": {"source": "local", "name": "never-seen"}}}
    with pytest.raises(InvalidError, match="never-seen"):
        admit(mine, TENANT, parse_request(other))
    with pytest.raises(NoWorkerError):
        admit(repository, TENANT, parse_request(body))  # without the setting nothing sleeps
    beat(mine, WORKER)
    assert admit(mine, TENANT, parse_request(body)).queue == "short"
