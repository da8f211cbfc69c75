"""Long polls and live streams: what they answer, and what they cost."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from api.context import Services
from api.dashboard.stream import job_stream
from tests.api.conftest import Caller, FakeWorker

Connect = Callable[[str], Any]


def run(coroutine: Any) -> Any:
    """Run a coroutine, but never for ever."""
    return asyncio.run(asyncio.wait_for(coroutine, 60))


async def held(services: Services, jobs: int = 1) -> None:
    """Wait until somebody waits for so many jobs."""
    while services.notifier.watched < jobs:
        await asyncio.sleep(0.01)


async def closing(services: Services) -> None:
    """End the notifier with the loop that it ran on."""
    await services.notifier.close()


class TestLongPoll:
    def test_it_answers_at_the_next_change(
        self, caller: Caller, connect_async: Connect, worker: FakeWorker, services: Services
    ) -> None:
        job = caller.create()

        async def story() -> httpx.Response:
            async with connect_async(caller.key) as client:
                url = f"/v1/jobs/{job['id']}"
                waiting = asyncio.create_task(client.get(url, headers={"Prefer": "wait=30"}))
                await held(services)
                await asyncio.to_thread(worker.claim, job["id"])
                response: httpx.Response = await waiting
                await closing(services)
                return response

        response = run(story())
        assert (response.status_code, response.json()["state"]) == (200, "running")
        assert response.headers["Preference-Applied"] == "wait=30"

    def test_a_version_that_is_not_known_is_answered_at_once(
        self, caller: Caller, worker: FakeWorker
    ) -> None:
        job = caller.create()
        headers = {"Prefer": "wait=30", "If-None-Match": '"0"'}
        assert caller.get(f"/v1/jobs/{job['id']}", headers=headers).status_code == 200

    def test_without_a_change_it_ends_as_it_began(self, caller: Caller, worker: FakeWorker) -> None:
        job = caller.create()
        url = f"/v1/jobs/{job['id']}"
        tag = caller.get(url).headers["ETag"]
        with caller:  # one event loop for both requests
            assert caller.get(url, headers={"Prefer": "wait=1", "If-None-Match": tag}).status_code == 304
            assert caller.get(url, headers={"Prefer": "wait=1"}).status_code == 200

    def test_an_ended_job_is_not_waited_for(
        self, caller: Caller, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch, services: Services
    ) -> None:
        job = caller.create()
        worker.run(job["id"])
        monkeypatch.setattr(services.notifier, "watch", None)
        assert caller.get(f"/v1/jobs/{job['id']}", headers={"Prefer": "wait=30"}).status_code == 200

    def test_a_deleted_job_lets_its_waiters_go(
        self, caller: Caller, connect_async: Connect, worker: FakeWorker, services: Services
    ) -> None:
        job = caller.create()
        caller.post(f"/v1/jobs/{job['id']}/cancel")
        tag = caller.get(f"/v1/jobs/{job['id']}").headers["ETag"]

        async def story() -> httpx.Response:
            async with connect_async(caller.key) as client:
                headers = {"Prefer": "wait=30", "If-None-Match": tag}
                waiting = asyncio.create_task(client.get(f"/v1/jobs/{job['id']}", headers=headers))
                await held(services)
                await asyncio.to_thread(services.repository.delete_job, job["id"])
                response: httpx.Response = await waiting
                await closing(services)
                return response

        assert run(story()).status_code == 404

    def test_a_caller_who_leaves_is_not_waited_for(
        self, caller: Caller, worker: FakeWorker, app: FastAPI
    ) -> None:
        job = caller.create()
        services: Services = app.state.services
        sent: list[Any] = []
        headers = {"authorization": f"Bearer {caller.key}", "prefer": "wait=30"}
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "GET",
            "scheme": "http",
            "path": f"/v1/jobs/{job['id']}",
            "raw_path": b"",
            "query_string": b"",
            "root_path": "",
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
            "client": ("127.0.0.1", 1),
            "server": ("test", 80),
        }

        async def story() -> None:
            gone = asyncio.Event()
            first = [{"type": "http.request", "body": b"", "more_body": False}]

            async def receive() -> dict[str, Any]:
                if first:
                    return first.pop()
                await gone.wait()
                return {"type": "http.disconnect"}

            async def send(message: Any) -> None:
                sent.append(message)

            request = asyncio.create_task(app(scope, receive, send))
            await held(services)
            gone.set()
            await asyncio.wait_for(request, 10)  # the wait would have taken 30
            await closing(services)

        run(story())
        assert services.notifier.watched == 0


class TestCost:
    def test_many_waiters_share_one_query_and_hold_no_thread(
        self,
        caller: Caller,
        connect_async: Connect,
        worker: FakeWorker,
        services: Services,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        jobs = [caller.create() for _ in range(20)]
        polls: list[int] = []
        looks: list[int] = []
        changes_since, versions = services.repository.changes_since, services.repository.versions

        def asked(horizon: int | None) -> Any:
            news = changes_since(horizon)
            polls.append(len(news.versions))
            return news

        def looked(ids: Any) -> Any:
            looks.append(len(ids))
            return versions(ids)

        monkeypatch.setattr(services.repository, "changes_since", asked)
        monkeypatch.setattr(services.repository, "versions", looked)

        async def story() -> tuple[int, int, httpx.Response, set[int]]:
            async with connect_async(caller.key) as client:
                threads = threading.active_count()
                waiting = [
                    asyncio.create_task(client.get(f"/v1/jobs/{job['id']}", headers={"Prefer": "wait=30"}))
                    for job in jobs * 10
                ]
                await held(services, jobs=20)
                while sum(looks) < 20:
                    await asyncio.sleep(0.01)
                polls.clear()
                while len(polls) < 3:
                    await asyncio.sleep(0.01)
                grown = threading.active_count() - threads
                seen = sum(polls)
                live = await client.get("/livez")
                for job in jobs:
                    await asyncio.to_thread(worker.services.repository.cancel_job, job["id"])
                answers = {(await task).status_code for task in waiting}
                await closing(services)
                return grown, seen, live, answers

        grown, seen, live, answers = run(story())
        assert sum(looks) == 20  # 200 waiters, 20 jobs, each looked at once
        assert seen == 0  # and while nothing changes, nothing is read
        assert grown <= 3  # the poller's and to_thread's own, not one a waiter
        assert live.status_code == 200
        assert answers == {200}
        assert services.notifier.watched == 0

    def test_streams_of_one_job_share_the_reading_of_its_events(
        self,
        caller: Caller,
        connect_async: Connect,
        worker: FakeWorker,
        services: Services,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        job = caller.create()
        reads: list[int] = []
        list_events = services.repository.list_events

        def counted(job_id: str, *, after: int = 0, limit: int = 1000) -> Any:
            reads.append(after)
            return list_events(job_id, after=after, limit=limit)

        monkeypatch.setattr(services.repository, "list_events", counted)

        async def story() -> list[str]:
            async with connect_async(caller.key) as client:
                headers = {"Accept": "text/event-stream"}
                url = f"/v1/jobs/{job['id']}/events"
                streams = [asyncio.create_task(client.get(url, headers=headers)) for _ in range(10)]
                await held(services)
                while not reads:
                    await asyncio.sleep(0.01)
                await asyncio.to_thread(worker.run, job["id"])
                texts = [(await stream).text for stream in streams]
                await closing(services)
                return texts

        texts = run(story())
        assert len(set(texts)) == 1
        assert texts[0].count("event: succeeded") == 1
        assert len(reads) < 10  # ten streams, and several rounds of events

    def test_a_stream_follows_a_job_to_its_end(
        self, caller: Caller, connect_async: Connect, worker: FakeWorker, services: Services
    ) -> None:
        job = caller.create()

        async def story() -> str:
            async with connect_async(caller.key) as client:
                stream = asyncio.create_task(
                    client.get(f"/v1/jobs/{job['id']}/events", headers={"Accept": "text/event-stream"})
                )
                await held(services)
                attempt = await asyncio.to_thread(worker.claim, job["id"])
                for step in range(1, 4):
                    await asyncio.to_thread(worker.progress, job["id"], attempt, step / 4)
                    await asyncio.sleep(0.05)
                await asyncio.to_thread(worker.succeed, job["id"], attempt)
                text: str = (await stream).text
                await closing(services)
                return text

        text = run(story())
        listed = caller.get(f"/v1/jobs/{job['id']}/events").json()["items"]
        assert [int(line[4:]) for line in text.split("\n") if line.startswith("id: ")] == [
            e["seq"] for e in listed
        ]

    def test_waiters_leave_when_the_service_stops(
        self, caller: Caller, connect_async: Connect, worker: FakeWorker, services: Services
    ) -> None:
        job = caller.create()

        async def story() -> tuple[httpx.Response, httpx.Response]:
            async with connect_async(caller.key) as client:
                url = f"/v1/jobs/{job['id']}"
                poll = asyncio.create_task(client.get(url, headers={"Prefer": "wait=30"}))
                stream = asyncio.create_task(
                    client.get(f"{url}/events", headers={"Accept": "text/event-stream"})
                )
                await held(services)
                await asyncio.sleep(0.1)
                await closing(services)
                return await poll, await stream

        poll, stream = run(story())
        assert (poll.status_code, stream.status_code) == (200, 200)
        assert "event: queued" in stream.text

    def test_a_page_is_not_told_that_its_job_ended_when_the_service_stops(
        self, caller: Caller, worker: FakeWorker, services: Services
    ) -> None:
        job = caller.create()

        async def story() -> list[bytes]:
            async def collect() -> list[bytes]:
                told = job_stream(
                    services, job["id"], lambda job: job.state, key=None, after=(0, 0), allowed=allowed
                )
                return [chunk async for chunk in told]

            async def allowed() -> bool:
                return True

            page = asyncio.create_task(collect())
            await held(services)
            await closing(services)
            return await page

        told = b"".join(run(story()))
        assert b"event: content\ndata: queued\n\n" in told and b"ended" not in told
