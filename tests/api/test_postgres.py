"""The same API on Postgres: what differs between the engines shows here."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import pytest
from fastapi import FastAPI

from tests.api.conftest import Caller, FakeWorker, prune
from tests.servers import postgres_url

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def database_url() -> Iterator[str]:
    """A database of this module's own."""
    with postgres_url() as url:
        yield url


@pytest.fixture
def app(make_app: Callable[..., FastAPI], database_url: str) -> Iterator[FastAPI]:
    """The app on Postgres."""
    made = make_app(database_url=database_url)
    yield made
    made.state.services.engine.dispose()


def test_a_job_goes_all_the_way(caller: Caller, worker: FakeWorker) -> None:
    body = prune(labels={"team": "nlp"}, gates=[{"metric": "perplexity_ratio", "max": 1.3}])
    first = caller.post("/v1/jobs", json=body, headers={"Idempotency-Key": "k"})
    assert caller.post("/v1/jobs", json=body, headers={"Idempotency-Key": "k"}).content == first.content
    job = first.json()
    worker.run(job["id"])
    url = f"/v1/jobs/{job['id']}"
    done = caller.get(url)
    assert (done.json()["state"], done.json()["verdict"]) == ("succeeded", "pass")
    assert caller.get(url, headers={"If-None-Match": done.headers["ETag"]}).status_code == 304
    assert "event: succeeded" in caller.get(f"{url}/events", headers={"Accept": "text/event-stream"}).text
    link = caller.post(f"{url}/artifacts/*/links").json()["url"]
    assert caller.get(link.partition(":8000")[2], headers={"Range": "bytes=0-9"}).status_code == 206
    found = caller.get("/v1/jobs?label.team=nlp&state=succeeded&kind=prune&limit=1").json()
    assert [item["id"] for item in found["items"]] == [job["id"]]
    assert 'optipfair_jobs{kind="prune",state="succeeded"}' in caller.get("/metrics").text
    assert caller.delete(url).status_code == 204


def test_nul_characters_are_refused_not_crashes(caller: Caller, admin: Caller, worker: FakeWorker) -> None:
    assert caller.get("/v1/jobs/%00").status_code == 404
    for query in ("label.a=%00", "label.%00=a"):  # no label holds one: refused, or nothing found
        answer = caller.get(f"/v1/jobs?{query}")
        assert answer.status_code == 422 or answer.json()["items"] == []
    assert caller.delete("/v1/webhooks/a%00").status_code == 404
    assert admin.post("/v1/keys", json={"name": "a\u0000"}).status_code == 422
    assert caller.post("/v1/jobs", json=prune(webhook_url="https://example.org/\u0000")).status_code == 422
    texts = {"calibration": {"texts": ["a\u0000b"]}}
    assert caller.post("/v1/jobs", json=prune(spec=texts)).status_code == 202  # a text may hold anything


def test_waiters_are_woken(caller: Caller, connect_async: Callable[..., object], worker: FakeWorker) -> None:
    job = caller.create()
    services = worker.services

    async def story() -> str:
        async with connect_async(caller.key) as client:  # type: ignore[attr-defined]
            poll = asyncio.create_task(client.get(f"/v1/jobs/{job['id']}", headers={"Prefer": "wait=30"}))
            while not services.notifier.watched:
                await asyncio.sleep(0.01)
            await asyncio.to_thread(worker.claim, job["id"])
            state: str = (await poll).json()["state"]
            await services.notifier.close()
            return state

    assert asyncio.run(asyncio.wait_for(story(), 60)) == "running"
