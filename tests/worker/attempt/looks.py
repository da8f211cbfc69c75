"""What tests of attempts look at: the job, its stored files, its scratch; and how a lease is lost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sqlalchemy import text

from jobs.rows import Job
from tests.worker.conftest import ScriptedEngine
from worker.services import Services

NewJob = Callable[..., Job]
EngineType = type[ScriptedEngine]


def state_of(services: Services, job: Job) -> Job:
    return services.repository.get_job(job.id)


def stored_folders(services: Services) -> list[str]:
    root = Path(services.settings.artifacts_url)
    return sorted(str(path.relative_to(root)) for path in root.glob("*/*")) if root.exists() else []


def scratch_folders(services: Services) -> list[Path]:
    return list(services.attempts_dir.iterdir()) if services.attempts_dir.exists() else []


def lose_the_lease(services: Services, job: Job) -> None:
    """What the sweeper does to an attempt whose lease has run out."""
    with services.repository.engine.begin() as connection:
        connection.execute(text("UPDATE jobs SET lease_expires_at = 1 WHERE id = :id"), {"id": job.id})
    services.repository.sweep_expired()
