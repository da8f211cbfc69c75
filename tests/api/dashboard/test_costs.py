"""What pages cost the database: as many statements for many jobs, events and readers as for few."""

from __future__ import annotations

import asyncio

import pytest
from fastapi import FastAPI

from tests.api.conftest import Caller, FakeWorker, counted
from tests.api.dashboard.open_pages import left_open
from tests.api.dashboard.samples import GATES, finish
from tests.servers import served


class Costs:
    """How many statements a page takes, whose reader is known."""

    def __init__(self, app: FastAPI, browser: Caller) -> None:
        self._app, self._browser = app, browser

    def of(self, path: str) -> int:
        self._browser.get(path)  # the key is looked up, readiness and templates are loaded
        with counted(self._app) as said:
            assert self._browser.get(path).status_code == 200
        return len(said)


@pytest.fixture
def costs(app: FastAPI, browser: Caller) -> Costs:
    return Costs(app, browser)


def test_a_list_of_many_jobs_takes_no_more_than_one_of_few(
    costs: Costs, caller: Caller, worker: FakeWorker
) -> None:
    caller.create(labels={"team": "nlp"})
    paths = ("/", "/?label.team=nlp&state=queued", "/?verdict=pass")
    few = [costs.of(path) for path in paths]
    for _ in range(60):
        caller.create(labels={"team": "nlp"})
    assert [costs.of(path) for path in paths] == few
    assert max(few) <= 4


def test_a_job_of_many_events_takes_no_more_than_one_of_few(
    costs: Costs, caller: Caller, worker: FakeWorker
) -> None:
    found = {}
    for number in (2, 120):
        job = caller.create(gates=GATES)
        attempt = worker.claim(job["id"])
        for step in range(number):
            worker.progress(job["id"], attempt, step / number, stage=f"stage {step // 10}")
        finish(worker, job, attempt)
        found[number] = costs.of(f"/jobs/{job['id']}")
    assert found[2] == found[120] <= 12


@pytest.mark.parametrize("path", ["/ui/jobs/stream", "/ui/jobs/{job}/stream", "/ui/system/stream"])
def test_many_open_pages_take_no_more_than_one(
    app: FastAPI, caller: Caller, worker: FakeWorker, path: str
) -> None:
    job = caller.create()["id"]
    worker.progress(job, worker.claim(job), 0.5)
    # a round takes at most 8 statements, and one comes each second: 40 pages apart would take far more
    with served(app) as address:
        rate = asyncio.run(left_open(app, address, path.format(job=job), [caller.key] * 40, 1.5))
    assert rate < 20
