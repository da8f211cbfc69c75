"""An app on SQLite in a temporary folder, callers with keys, and a worker that only drives the repository."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import event

from api.context import Services
from api.main import Options, create_app
from jobs.rows import Job, JobError, LocalModel, Progress, storage_of
from jobs.settings import Settings
from jobs.signing.keys import generate_key
from jobs.tables import metadata

FORM = {"Content-Type": "application/x-www-form-urlencoded"}
MODEL = {"source": "local", "name": "tiny"}
FACTS = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "num_layers": 2,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 256,
    "parameters": 120_000,
    "bytes": 240_000,
    "dtype": "bfloat16",
    "files": {"config.json": 500, "model.safetensors": 240_000},
    "format": "safetensors",
    "has_tokenizer": True,
}
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "metrics.json": b'{"perplexity_ratio": 1.2}',
    "model.safetensors": bytes(range(256)) * 40,
    "plot.png": b"\x89PNG\r\n\x1a\n" + bytes(100),
}
METRICS = {
    "perplexity_ratio": 1.2,
    "original_parameters": 120_000,
    "pruned_parameters": 100_000,
    "seconds": 1.5,
}


@pytest.fixture(autouse=True, scope="session")
def quiet_logs() -> Iterator[None]:
    """Keep log lines in memory: printing them is most of the time of a quick test."""
    structlog.configure(
        processors=[lambda _logger, _name, event: json.dumps(event, default=str)],
        logger_factory=structlog.ReturnLoggerFactory(),
    )
    yield
    structlog.reset_defaults()


def prune(**fields: Any) -> dict[str, Any]:
    """The body of a valid prune job; with gates, it measures what they name, too."""
    text = {"texts": ["Some text to measure on."]}
    named = {gate.get("metric") for gate in fields.get("gates", ())}
    measured: dict[str, Any] = {"evaluation": text} if named else {}
    if "bias_change" in named:
        pairs = [["The white nurse", "The Black nurse"]]
        measured |= {"calibration": text, "fairness": {"prompt_pairs": pairs, "weight": 0.5}}
    spec = {"model": MODEL, "pruning_percentage": 20, **measured, **fields.pop("spec", {})}
    return {"kind": "prune", "spec": spec, **fields}


@dataclass
class FakeWorker:
    """Does with the repository and the store what a worker does, without an engine."""

    services: Services
    id: str = "worker-1"
    models: list[LocalModel] = field(default_factory=lambda: [LocalModel("tiny", "r" * 64, FACTS)])

    def beat(self, **changes: Any) -> None:
        """Be alive."""
        values: dict[str, Any] = {
            "queues": ["cpu", "short"],
            "devices": ["cpu"],
            "models": self.models,
            "files": {"calibration": ["texts.txt"], "suites": ["pairs.json"]},
            "allow_hub": False,
            "code_version": "1",
            **changes,
        }
        self.services.repository.worker_beat(self.id, **values)

    def claim(self, job_id: str) -> int:
        """Start an attempt."""
        claim = self.services.repository.claim(job_id, self.id)
        if claim is None:
            raise RuntimeError("nothing to claim")
        return claim.attempt

    def progress(self, job_id: str, attempt: int, fraction: float, stage: str = "prune") -> None:
        """Report progress."""
        data = {
            "stage": stage,
            "fraction": fraction,
            "message": f"layer {int(fraction * 10)}",
            "done": 1,
            "total": 2,
        }
        progress = Progress(fraction, stage, data["message"], 3.0)
        if not self.services.repository.add_event(job_id, attempt, "progress", data, progress=progress):
            raise RuntimeError("the attempt was replaced")

    def succeed(
        self,
        job_id: str,
        attempt: int,
        files: dict[str, bytes] | None = None,
        metrics: dict[str, Any] | None = None,
    ) -> None:
        """Publish files and complete the job."""
        repository, store = self.services.repository, self.services.store
        stage = store.stage(job_id, attempt)
        for name, data in (files or FILES).items():
            (stage / name).write_bytes(data)
        now = repository.now()
        steps = [step["name"] for step in repository.get_job(job_id).spec.get("steps", ())]
        sealed = store.seal(job_id, attempt, finished_at=now, steps=steps)
        state = repository.mark_succeeded(
            job_id,
            attempt,
            artifacts=sealed.artifacts,
            archive=sealed.archive,
            metrics=METRICS if metrics is None else metrics,
            publish=lambda: store.publish(job_id, attempt),
            finished_at=now,
        )
        if state is None:
            raise RuntimeError("the attempt was replaced")

    def run(self, job_id: str, **kwargs: Any) -> None:
        """One whole successful attempt."""
        attempt = self.claim(job_id)
        self.progress(job_id, attempt, 0.5)
        self.succeed(job_id, attempt, **kwargs)

    def fail(self, job_id: str, code: str = "non_finite_weights") -> None:
        """One attempt that fails by the user's fault."""
        self.services.repository.mark_failed(job_id, self.claim(job_id), code, "layer 3 holds NaN")


class Caller(TestClient):
    """A client with a key."""

    def __init__(self, app: FastAPI, key: str | None) -> None:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        super().__init__(
            app, base_url="http://127.0.0.1:8000", headers=headers, raise_server_exceptions=False
        )
        self.key = key or ""

    def create(self, **fields: Any) -> dict[str, Any]:
        """Create a prune job and return it."""
        response = self.post("/v1/jobs", json=prune(**fields))
        if response.status_code != 202:
            raise AssertionError(response.text)
        return dict(response.json())


@contextmanager
def counted(app: FastAPI) -> Iterator[list[str]]:
    """The SQL statements that the API runs meanwhile."""
    said: list[str] = []

    def note(*arguments: Any) -> None:
        said.append(arguments[2])

    engine = app.state.services.engine
    event.listen(engine, "before_cursor_execute", note)
    try:
        yield said
    finally:
        event.remove(engine, "before_cursor_execute", note)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings in a temporary folder."""
    return Settings(data_dir=tmp_path / "data", log_level="ERROR")


@pytest.fixture
def make_app(settings: Settings, sqlite_template: Path) -> Callable[..., FastAPI]:
    """Makes apps on the same database; the loops are off unless asked for."""
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    shutil.copy(sqlite_template, settings.data_dir / "service.db")

    def make(**changes: Any) -> FastAPI:
        background = changes.pop("background", False)
        chosen = settings.model_copy(update=changes)
        app = create_app(chosen, Options(background=background))
        if "database_url" in changes:
            metadata.create_all(app.state.services.engine)
        return app

    return make


@pytest.fixture
def app(make_app: Callable[..., FastAPI]) -> Iterator[FastAPI]:
    """The app with default settings."""
    made = make_app()
    yield made
    made.state.services.engine.dispose()


@pytest.fixture
def services(app: FastAPI) -> Services:
    """What is behind the app."""
    found = app.state.services
    assert isinstance(found, Services)
    return found


@pytest.fixture
def make_key(services: Services) -> Callable[..., str]:
    """Makes API keys."""

    def make(tenant: str = "acme", *scopes: str) -> str:
        key = generate_key(services.secrets)
        granted = scopes or ("jobs:read", "jobs:write")
        services.repository.create_key(tenant, key_hash=key.hash, hint=key.hint, scopes=granted)
        return key.plain

    return make


@pytest.fixture
def caller(app: FastAPI, make_key: Callable[..., str]) -> Caller:
    """A caller of the tenant `acme` who may read and write."""
    return Caller(app, make_key())


@pytest.fixture
def reader(app: FastAPI, make_key: Callable[..., str]) -> Caller:
    """A caller of the same tenant who may only read."""
    return Caller(app, make_key("acme", "jobs:read"))


@pytest.fixture
def stranger(app: FastAPI, make_key: Callable[..., str]) -> Caller:
    """A caller of another tenant."""
    return Caller(app, make_key("other"))


@pytest.fixture
def admin(app: FastAPI, make_key: Callable[..., str]) -> Caller:
    """A caller with `admin`."""
    return Caller(app, make_key("ops", "admin"))


@pytest.fixture
def nobody(app: FastAPI) -> Caller:
    """A caller without a key."""
    return Caller(app, None)


@pytest.fixture
def browser(app: FastAPI, caller: Caller) -> Caller:
    """A visitor without an Authorization header who has logged in."""
    visitor = Caller(app, None)
    response = visitor.post(
        "/ui/login", content=f"key={caller.key}&next=/", headers=FORM, follow_redirects=False
    )
    assert response.status_code == 303, response.text
    return visitor


@pytest.fixture
def worker(services: Services) -> FakeWorker:
    """A live worker."""
    fake = FakeWorker(services)
    fake.beat()
    return fake


@pytest.fixture
def connect_async(app: FastAPI) -> Callable[[str], Any]:
    """Opens asynchronous clients on the app, for held requests."""

    @asynccontextmanager
    async def connect(key: str) -> AsyncIterator[httpx.AsyncClient]:
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        headers = {"Authorization": f"Bearer {key}"}
        async with httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers) as client:
            yield client

    return connect


__all__ = [
    "FACTS",
    "FILES",
    "METRICS",
    "MODEL",
    "Caller",
    "FakeWorker",
    "Job",
    "JobError",
    "prune",
    "storage_of",
]
