"""A repository on SQLite, a local store, and services whose engine processes are scripted."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from jobs.artifacts import make_store
from jobs.database import connect
from jobs.repository import Repository
from jobs.rows import Job
from jobs.settings import Settings
from jobs.specs import parse_request
from worker.engine.process import Ended, Message
from worker.inputs.cache import FolderCache
from worker.inputs.inventory import Inventory
from worker.services import Services

Step = Message | Ended | Callable[[], None]
RESULT: Message = {"type": "result", "metrics": {"parameters": 7}}


class ScriptedEngine:
    """Stands in for an engine process: writes one file, then says what its script says."""

    script: ClassVar[list[Step]] = [RESULT]
    stopped = 0

    def __init__(self, _context: object, task: dict[str, Any], log: Path) -> None:
        Path(task["output"], "config.json").write_text("{}")
        log.write_text("said by the engine\n")
        self._steps = iter(type(self).script)
        self.pid = 0

    def receive(self, timeout: float) -> Message | Ended | None:
        """The next step of the script; after its end, silence."""
        step = next(self._steps, None)
        if callable(step):
            step()
            return None
        if step is None:
            threading.Event().wait(min(timeout, 0.01))
        return step

    def stop(self) -> None:
        """Count, so that tests see that no engine is left running."""
        type(self).stopped += 1


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> type[ScriptedEngine]:
    """The class whose `script` the next attempt follows."""
    scripted = type("Engine", (ScriptedEngine,), {"script": [RESULT], "stopped": 0})
    monkeypatch.setattr("worker.attempt.supervisor.EngineProcess", scripted)
    return scripted


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Quick times, and a model named `tiny`."""
    (tmp_path / "models" / "tiny").mkdir(parents=True)
    (tmp_path / "models" / "tiny" / "model.safetensors").write_bytes(b"x" * 100)
    return Settings(
        data_dir=tmp_path,
        lease_seconds=30,
        heartbeat_seconds=0.05,
        grace_seconds=0.05,
        min_free_bytes=0,
    )


@pytest.fixture
def services(settings: Settings, sqlite_template: Path) -> Iterator[Services]:
    """Everything an attempt needs, on an empty database."""
    shutil.copy(sqlite_template, settings.data_dir / "service.db")
    database = connect(settings.database_url)
    repository = Repository(database, settings)
    repository.ensure_tenant("acme")
    yield Services(
        worker_id="worker-1",
        settings=settings,
        repository=repository,
        store=make_store(settings),
        engines=None,  # type: ignore[arg-type]
        inventory=Inventory(
            settings.models_dir,
            settings.calibration_dir,
            settings.suites_dir,
            settings.work_dir / "m.json",
        ),
        job_cache=FolderCache(settings.work_dir / "jobs", 10_000),
        environ={},
    )
    database.dispose()


@pytest.fixture
def new_job(services: Services) -> Callable[..., Job]:
    """Makes a queued job; keyword arguments go into the request."""

    def make(kind: str = "analyze", spec: dict[str, Any] | None = None, **request: Any) -> Job:
        body = {"kind": kind, "spec": spec or {"model": {"source": "local", "name": "tiny"}}, **request}
        return services.repository.create_job("acme", parse_request(body), queue="cpu")

    return make
