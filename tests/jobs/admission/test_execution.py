"""Admission says how a prune will be carried out, and refuses only what neither way can do."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from jobs.admission import Admission, admit
from jobs.errors import InvalidError
from jobs.repository import Repository
from jobs.specs import parse_request
from tests.jobs.admission.test_admission import WORKER, beat
from tests.jobs.conftest import TENANT

pytestmark = pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
#: Between what a streamed prune of the model is estimated to take, and one in memory.
LITTLE, MUCH = 500_000_000, 10**12
CALIBRATION = {"texts": ["a text"] * 8}


def admitted(repository: Repository, **spec: Any) -> Admission:
    plain = {"model": {"source": "local", "name": "tiny"}, "pruning_percentage": 20, **spec}
    return admit(repository, TENANT, parse_request({"kind": "prune", "spec": plain}))


@pytest.mark.parametrize(
    ("memory", "spec", "execution", "reason"),
    [
        (MUCH, {}, "memory", "logits"),
        (MUCH, {"verify": "structure"}, "streamed", "by weights alone"),
        (MUCH, {"calibration": CALIBRATION}, "memory", "calibration"),
        (MUCH, {"calibration": CALIBRATION, "execution": "streamed"}, "streamed", "asked for"),
        (LITTLE, {}, "streamed", "0.50 GB"),
        (LITTLE, {"calibration": CALIBRATION}, "streamed", "0.50 GB"),
        (LITTLE, {"evaluation": {"texts": ["a text"]}}, "streamed", "0.50 GB"),
    ],
)
def test_the_estimate_names_the_way_and_why(
    repository: Repository, memory: int, spec: dict[str, Any], execution: str, reason: str
) -> None:
    beat(repository, replace(WORKER, memory_bytes=memory))
    cost = admitted(repository, **spec).estimate
    assert cost is not None
    assert cost.execution == execution
    assert reason in (cost.reason or "")
    assert cost.peak_memory_bytes <= memory


@pytest.mark.parametrize(
    ("memory", "spec", "why"),
    [
        (LITTLE, {"execution": "memory"}, "ask for execution streamed"),
        (LITTLE, {"dtype": "float32"}, "dtype float32"),
        (LITTLE, {"calibration": CALIBRATION, "healing": {"max_seconds": 5}}, "healing"),
        (1_000_000, {}, "streamed it takes about 0.25 GB"),
    ],
)
def test_what_neither_way_can_do_is_too_large(
    repository: Repository, memory: int, spec: dict[str, Any], why: str
) -> None:
    beat(repository, replace(WORKER, memory_bytes=memory))
    with pytest.raises(InvalidError, match=why) as refused:
        admitted(repository, **spec)
    assert refused.value.code == "model_too_large"


def test_a_queue_with_the_memory_goes_before_one_that_would_stream(repository: Repository) -> None:
    short = replace(WORKER, id="w2", queues=["short"], memory_bytes=LITTLE)
    beat(repository, short, replace(WORKER, queues=["cpu"], memory_bytes=MUCH))
    assert admitted(repository).queue == "cpu"
    beat(repository, short, replace(WORKER, queues=["cpu"], memory_bytes=LITTLE))
    assert admitted(repository).queue == "short"


def test_a_pipeline_names_the_step_that_is_streamed(repository: Repository) -> None:
    beat(repository, replace(WORKER, memory_bytes=MUCH))
    model = {"source": "local", "name": "tiny"}
    steps = [
        {"name": "look", "kind": "analyze", "spec": {"model": model}},
        {"name": "cut", "kind": "prune", "spec": {"model": model, "pruning_percentage": 20}},
        {
            "name": "stream",
            "kind": "prune",
            "spec": {"model": model, "pruning_percentage": 20, "verify": "structure"},
        },
    ]
    cost = admit(repository, TENANT, parse_request({"kind": "pipeline", "spec": {"steps": steps}})).estimate
    assert cost is not None
    assert cost.execution == "streamed"
    assert (cost.reason or "").startswith("step stream: ")
