"""Health, metrics, the OpenAPI document, background loops, and what importing the API costs."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families

from api import openapi
from api.background.loops import Loops
from api.context import Services
from jobs.ids import new_id
from jobs.rows import JobError, LocalModel, OutboxEntry, storage_of
from tests.api.conftest import FACTS, Caller, FakeWorker, prune

HEAVY = ("torch", "transformers", "matplotlib", "numpy", "scipy", "safetensors", "optipfair_engine.pruning")


def test_livez_looks_at_nothing_else(make_app: Callable[..., FastAPI], settings: object) -> None:
    app = make_app()
    app.state.services.engine.dispose()
    app.state.services.repository = None
    assert Caller(app, None).get("/livez").json() == {"status": "ok"}


class TestReadiness:
    def test_it_names_what_is_not_ready(self, nobody: Caller, services: Services) -> None:
        from sqlalchemy import text

        with services.engine.begin() as connection:
            connection.execute(text("DROP TABLE alembic_version"))
        response = nobody.get("/readyz")
        assert response.status_code == 503
        assert response.json() == {
            "status": "not_ready",
            "checks": {
                "database": "ok",
                "migrations": "not at head",
                "broker": "unavailable",
                "worker": "no live worker",
                "disk": "ok",
            },
        }

    def test_it_is_ready_when_all_is_there(
        self, nobody: Caller, services: Services, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(services.publisher, "ping", lambda: None)
        response = nobody.get("/readyz")
        assert (response.status_code, response.json()["status"]) == (200, "ready"), response.text

    def test_a_worker_for_short_jobs_alone_is_not_enough(self, nobody: Caller, worker: FakeWorker) -> None:
        worker.beat(queues=["short"])
        assert nobody.get("/readyz").json()["checks"]["worker"] == "no live worker but for short jobs"
        FakeWorker(worker.services, "worker-2").beat(queues=["gpu"])
        assert nobody.get("/readyz").json()["checks"]["worker"] == "ok"

    def test_an_api_that_expects_short_jobs_alone_is_served_by_such_a_worker(
        self, nobody: Caller, worker: FakeWorker, services: Services
    ) -> None:
        services.settings = services.settings.model_copy(update={"worker_queues": "short"})
        worker.beat(queues=["short"])
        assert nobody.get("/readyz").json()["checks"]["worker"] == "ok"

    def test_it_shows_nothing_of_the_inside(self, nobody: Caller, settings: object) -> None:
        text = nobody.get("/readyz").text
        assert "sqlite" not in text
        assert "/" not in text


class TestMetrics:
    def test_jobs_are_counted_by_state_and_kind(self, caller: Caller, worker: FakeWorker) -> None:
        job = caller.create()
        worker.run(caller.create()["id"])
        caller.get(f"/v1/jobs/{job['id']}")
        text = caller.get("/metrics").text
        samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
        jobs = {(s.labels["state"], s.labels["kind"]): s.value for s in samples if s.name == "optipfair_jobs"}
        assert jobs == {("queued", "prune"): 1, ("succeeded", "prune"): 1}
        assert {s.labels["queue"] for s in samples if s.name == "optipfair_queue_age_seconds"} == {"short"}

    def test_requests_are_counted_by_route(self, app: FastAPI, make_key: Callable[..., str]) -> None:
        admin = Caller(app, make_key("acme", "admin"))
        admin.get(f"/v1/jobs/{new_id()}")
        text = admin.get("/metrics").text
        samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
        routes = {s.labels["route"] for s in samples if s.name == "optipfair_http_requests_total"}
        assert "/v1/jobs/{job_id}" in routes

    def test_a_key_without_admin_sees_its_own_tenants_jobs_only(
        self, app: FastAPI, make_key: Callable[..., str], worker: FakeWorker
    ) -> None:
        ours = Caller(app, make_key())
        theirs = Caller(app, make_key("other"))
        admin = Caller(app, make_key("third", "admin"))
        ours.create()
        worker.run(theirs.create()["id"])

        def counted(caller: Caller) -> dict[str, float]:
            families = text_string_to_metric_families(caller.get("/metrics").text)
            samples = [sample for family in families for sample in family.samples]
            found = {f"job {s.labels['state']}": s.value for s in samples if s.name == "optipfair_jobs"}
            names = ("optipfair_attempts", "optipfair_queue_age_seconds", "optipfair_http_requests_total")
            return found | {name: 1 for name in names if any(s.name == name for s in samples)}

        assert counted(ours) == {"job queued": 1, "optipfair_queue_age_seconds": 1}
        assert counted(theirs) == {"job succeeded": 1, "optipfair_attempts": 1}
        assert counted(admin).keys() == counted(ours).keys() | counted(theirs).keys() | {
            "optipfair_http_requests_total"
        }
        assert Caller(app, make_key("acme", "jobs:write")).get("/metrics").status_code == 403

    def test_no_label_holds_an_id(
        self, app: FastAPI, make_key: Callable[..., str], worker: FakeWorker
    ) -> None:
        caller = Caller(app, make_key("acme", "admin"))
        job = caller.create()
        caller.get(f"/v1/jobs/{job['id']}")
        caller.get("/nowhere/at/all")
        caller.request("ODDMETHOD", "/v1/jobs")
        text = caller.get("/metrics").text
        assert job["id"] not in text
        assert "nowhere" not in text
        assert "ODDMETHOD" not in text


class TestModels:
    def test_a_model_that_one_worker_can_use_has_no_error(self, caller: Caller, services: Services) -> None:
        """The first worker has a broken copy of `both`; nobody can use `old`."""
        problem = JobError("model_truncated", "it ends early")
        broken = [LocalModel(name, None, {}, problem) for name in ("both", "old")]
        FakeWorker(services, "worker-1", broken).beat()
        FakeWorker(services, "worker-2", [LocalModel("both", "r2", FACTS), broken[1]]).beat(queues=["gpu"])
        both, old = caller.get("/v1/models").json()["items"]
        assert (both["name"], both["revision"], both["queues"]) == ("both", "r2", ["gpu"])
        assert both["error"] is None
        assert (old["name"], old["error"]["code"]) == ("old", "model_truncated")


class TestOpenApi:
    def test_the_file_is_the_apps(self) -> None:
        assert openapi.TARGET.read_text() == openapi.render(), "run: python -m api.openapi"

    def test_it_needs_a_key_and_describes_bodies(self, caller: Caller, nobody: Caller) -> None:
        assert nobody.get("/openapi.json").status_code == 401
        document = caller.get("/openapi.json").json()
        body = document["paths"]["/v1/jobs"]["post"]["requestBody"]["content"]["application/json"]["schema"]
        assert body == {"$ref": "#/components/schemas/JobRequest"}

    def test_the_request_headers_that_matter_are_described(self) -> None:
        paths = json.loads(openapi.render())["paths"]

        def headers(method: str, path: str) -> set[str]:
            listed = paths[path][method].get("parameters", [])
            return {item["name"] for item in listed if item["in"] == "header"}

        assert headers("post", "/v1/jobs") == {"Idempotency-Key", "Prefer"}
        assert headers("post", "/v1/jobs:validate") == set()  # it makes nothing that could come twice
        assert headers("get", "/v1/jobs/{job_id}") == {"If-None-Match", "Prefer"}
        assert headers("get", "/v1/jobs/{job_id}/events") == {"Last-Event-ID"}
        for path in ("/v1/download/{token}/{name}", "/v1/jobs/{job_id}/artifacts/{name}"):
            for method in ("get", "head"):
                assert headers(method, path) == {"Range", "If-Range", "If-None-Match", "If-Match"}

    def test_every_reference_leads_somewhere(self) -> None:
        document = json.loads(openapi.render())
        text = json.dumps(document)
        names = {part.split('"')[0] for part in text.split('"#/components/schemas/')[1:]}
        assert names
        assert names <= set(document["components"]["schemas"])


class TestLoops:
    def test_created_jobs_are_published_with_their_queue(
        self, caller: Caller, worker: FakeWorker, services: Services, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sent: list[OutboxEntry] = []
        monkeypatch.setattr(services.publisher, "publish", sent.append)
        job = caller.create(priority=5)
        assert one_round(services, "dispatch")
        assert [(entry.job_id, entry.queue, entry.priority) for entry in sent] == [(job["id"], "short", 5)]
        assert not one_round(services, "dispatch")

    def test_a_broker_that_is_away_loses_nothing(
        self, caller: Caller, worker: FakeWorker, services: Services, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def away(_entry: OutboxEntry) -> None:
            raise ConnectionError("no broker")

        monkeypatch.setattr(services.publisher, "publish", away)
        caller.create()
        with pytest.raises(ConnectionError):
            one_round(services, "dispatch")
        with services.engine.connect() as connection:
            assert connection.exec_driver_sql("SELECT count(*) FROM outbox").scalar_one() == 1

    def test_lost_attempts_are_put_back(
        self, make_app: Callable[..., FastAPI], make_key: Callable[..., str], worker: FakeWorker
    ) -> None:
        app = make_app(lease_seconds=0.001)
        caller, quick = Caller(app, make_key()), FakeWorker(app.state.services)
        job = caller.create()
        quick.claim(job["id"])
        asyncio.run(asyncio.sleep(0.05))
        assert one_round(app.state.services, "sweep")
        assert caller.get(f"/v1/jobs/{job['id']}").json()["state"] == "queued"

    def test_files_past_their_time_and_orphans_go(
        self, make_app: Callable[..., FastAPI], make_key: Callable[..., str], worker: FakeWorker
    ) -> None:
        app = make_app(retention_seconds=1, orphan_grace_seconds=0)
        services: Services = app.state.services
        caller, maker = Caller(app, make_key()), FakeWorker(app.state.services)
        job = caller.create()
        maker.run(job["id"])
        (services.store.stage(job["id"], 7) / "left.bin").write_bytes(b"x")
        with services.engine.begin() as connection:
            connection.exec_driver_sql("UPDATE jobs SET artifacts_expire_at = 1")
        assert one_round(services, "purge")
        asyncio.run(asyncio.sleep(0.02))
        one_round(services, "clean")
        assert list(services.store.folders()) == []
        assert caller.get(f"/v1/jobs/{job['id']}/artifacts").json() == []
        assert storage_of(job["id"], 1)

    def test_a_failing_round_is_counted_and_the_loop_goes_on(self, services: Services) -> None:
        rounds: list[int] = []

        async def story() -> None:
            loops = Loops(services)
            done = asyncio.Event()
            wake = asyncio.Event()

            async def step() -> bool:
                rounds.append(1)
                if len(rounds) == 1:
                    wake.set()  # the pause after a failure is cut short
                    raise RuntimeError("once")
                done.set()
                return False

            task = asyncio.create_task(loops.run("test", step, 0.01, wake))
            await asyncio.wait_for(done.wait(), 10)
            task.cancel()
            await loops.close()

        asyncio.run(story())
        text = b"".join(line for line in metrics_of(services).splitlines() if b"loop_errors_total" in line)
        assert b'optipfair_loop_errors_total{loop="test"} 1.0' in text

    def test_the_app_runs_them_and_stops(
        self, make_app: Callable[..., FastAPI], make_key: Callable[..., str], worker: FakeWorker
    ) -> None:
        app = make_app(background=True)
        sent: list[OutboxEntry] = []
        app.state.services.publisher.publish = sent.append
        with Caller(app, make_key()) as caller:
            job = caller.create()
            for _ in range(200):
                if sent:
                    break
                asyncio.run(asyncio.sleep(0.02))
        assert [entry.job_id for entry in sent] == [job["id"]]


def one_round(services: Services, name: str) -> bool:
    async def once() -> bool:
        loops = Loops(services)
        try:
            return bool(await getattr(loops, name)())
        finally:
            await loops.close()

    return asyncio.run(once())


def metrics_of(services: Services) -> bytes:
    from api.observability import render

    return render([], services.metrics)


class TestImport:
    def test_it_loads_no_engine_and_nothing_that_one_route_or_a_loop_alone_needs(self) -> None:
        names = [
            *HEAVY,
            *("celery", "kombu", "jinja2", "obstore", "httpx", "standardwebhooks", "alembic", "psycopg"),
            *("opentelemetry.sdk", "opentelemetry.exporter", "pydantic_settings", "yaml"),
            *(
                "rich",
                "pygments",
                "click",
                "typer",
                "joserfc",
                "jwt",
                "cryptography",
                "boto3",
                "redis",
                "uvicorn",
            ),
        ]
        # without a collector of traces, their SDK is not loaded for the routes either
        code = (
            "import sys; from api.main import make_routes; from api.observability import HttpMetrics;"
            f"make_routes(HttpMetrics()); print([name for name in {names} if name in sys.modules])"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "[]"

    def test_the_module_level_app_is_made_only_when_asked_for(self, tmp_path: Path) -> None:
        code = "import api.main, os; print(os.listdir('.')); api.main.app; print(os.listdir('.'))"
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
        )
        assert done.stdout.split("\n")[:2] == ["[]", "['data']"]


class Collector:
    """A real HTTP server that takes OTLP traces."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.bodies: list[bytes] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                collector.paths.append(self.path)
                collector.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_args: object) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"


class TestTraces:
    def test_a_post_is_traced_and_its_context_goes_with_the_message(
        self, make_app: Callable[..., FastAPI], make_key: Callable[..., str], worker: FakeWorker
    ) -> None:
        collector = Collector()
        app = make_app(otlp_endpoint=collector.url)
        trace = "0af7651916cd43dd8448eb211c80319c"
        with Caller(app, make_key()) as caller:
            headers = {"traceparent": f"00-{trace}-b7ad6b7169203331-01"}
            assert caller.post("/v1/jobs", json=prune(), headers=headers).status_code == 202
            (entry,) = app.state.services.repository.take_outbox()
        collector.server.shutdown()
        collector.server.server_close()
        assert entry.traceparent is not None
        assert entry.traceparent.startswith(f"00-{trace}-")
        assert collector.paths == ["/v1/traces"]
        assert b"optipfair-api" in collector.bodies[0]
        assert bytes.fromhex(trace) in collector.bodies[0]
