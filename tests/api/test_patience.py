"""A neighbour that says nothing and closes nothing: callers get their answer all the same, within bounds.

The limits of `jobs.patience` are well below the seconds that are allowed here; without them the calls would
hang for ever.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from fastapi import FastAPI
from psycopg import errors
from sqlalchemy import event

from jobs.database import is_disk_full
from jobs.signing.keys import generate_key
from jobs.tables import metadata
from tests.api.conftest import Caller, FakeWorker, prune
from tests.proxy import Mode, Proxy, proxy
from tests.servers import postgres_server, s3_server

ANSWER_SECONDS = 10.0


@pytest.fixture(scope="module")
def between() -> Iterator[Proxy]:
    """A proxy before a Postgres."""
    with postgres_server() as server, proxy(server.home / ".s.PGSQL.5432") as made:
        yield made


@pytest.fixture(scope="module")
def before_s3() -> Iterator[tuple[Proxy, str]]:
    """A proxy before an S3 store, and the name of the bucket."""
    with s3_server() as server, proxy(("127.0.0.1", int(server.endpoint.rpartition(":")[2]))) as made:
        yield made, server.bucket


@contextmanager
def answered_in_time() -> Iterator[None]:
    began = time.monotonic()
    yield
    assert time.monotonic() - began < ANSWER_SECONDS


def on_postgres(make_app: Callable[..., FastAPI], between: Proxy) -> tuple[FastAPI, Caller]:
    """An app whose database is behind the proxy, and a caller."""
    app = make_app(database_url=f"postgresql://postgres@127.0.0.1:{between.port}/postgres")
    services = app.state.services
    metadata.create_all(services.engine)
    services.repository.ensure_tenant("acme")
    key = generate_key(services.secrets)
    services.repository.create_key(
        "acme", key_hash=key.hash, hint=key.hint, scopes={"jobs:read", "jobs:write"}
    )
    return app, Caller(app, key.plain)


@pytest.mark.server
@pytest.mark.slow
@pytest.mark.parametrize("mode", ["stall", "half-open", "refuse"])
def test_a_silent_database_is_unavailable_within_bounds(
    make_app: Callable[..., FastAPI], between: Proxy, mode: Mode
) -> None:
    app, caller = on_postgres(make_app, between)
    nobody = Caller(app, None)
    with between.being(mode):
        with answered_in_time():
            answer = caller.get("/v1/jobs")
        assert (answer.status_code, answer.json()["code"]) == (503, "database_unavailable")
        with answered_in_time():
            ready = nobody.get("/readyz")
        assert (ready.status_code, ready.json()["checks"]["database"]) == (503, "unavailable")
        assert nobody.get("/livez").status_code == 200
    assert caller.get("/v1/jobs").status_code == 200


@pytest.mark.server
@pytest.mark.slow
def test_slow_answers_of_a_database_are_not_waited_for_without_end(
    make_app: Callable[..., FastAPI], between: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each answer comes in time; a job needs so many that they would take half a minute."""
    app, caller = on_postgres(make_app, between)
    FakeWorker(app.state.services).beat()
    caller.create()
    monkeypatch.setattr(between, "slow_seconds", 2.0)
    with between.being("slow"), answered_in_time():
        answer = caller.post("/v1/jobs", json=prune())
    assert (answer.status_code, answer.json()["code"]) == (503, "database_unavailable")
    assert len(caller.get("/v1/jobs").json()["items"]) == 1


@pytest.mark.server
@pytest.mark.slow
def test_a_silent_store_is_unavailable_within_bounds(
    app: FastAPI,
    make_app: Callable[..., FastAPI],
    make_key: Callable[..., str],
    before_s3: tuple[Proxy, str],
) -> None:
    store, bucket = before_s3
    served = make_app(
        artifacts_url=f"s3://{bucket}",
        artifacts_s3_endpoint=f"http://127.0.0.1:{store.port}",
        artifacts_s3_access_key="test",
        artifacts_s3_secret_key="test-secret",
    )
    worker = FakeWorker(served.state.services)
    worker.beat()
    caller = Caller(served, make_key())
    job = caller.create()
    worker.run(job["id"])
    path = f"/v1/jobs/{job['id']}/artifacts/config.json"
    assert caller.get(path).status_code == 200
    with store.being("stall"):
        with answered_in_time():
            answer = caller.get(path)
        assert (answer.status_code, answer.json()["code"]) == (503, "storage_error")
    assert caller.get(path).status_code == 200


class TestAFullDisk:
    def test_a_database_that_cannot_write_says_why(
        self, app: FastAPI, caller: Caller, worker: FakeWorker
    ) -> None:
        engine = app.state.services.engine
        caller.create()
        with engine.connect() as connection:
            pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        engine.dispose()

        def bound(connection: Any, _record: object) -> None:
            connection.execute(f"PRAGMA max_page_count={pages}")

        event.listen(engine, "connect", bound)
        texts = {"calibration": {"texts": ["a" * 1000] * 100}}
        answer = caller.post("/v1/jobs", json=prune(spec=texts))
        assert (answer.status_code, answer.json()["code"]) == (503, "storage_full"), answer.text
        assert "disk" in answer.json()["detail"]
        assert answer.headers["Retry-After"] == "60"

    def test_readiness_names_it(self, app: FastAPI, nobody: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(app.state.services.store, "free_bytes", lambda: 1000)
        ready = nobody.get("/readyz")
        assert (ready.status_code, ready.json()["checks"]["disk"]) == (503, "full")

    def test_postgres_names_it_by_its_code(self) -> None:
        assert is_disk_full(errors.DiskFull())
        assert not is_disk_full(errors.QueryCanceled())
