"""What a pipeline's finished steps have left stays to be had when the job goes on, or fails."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, delete, insert, update

from jobs import tables as t
from jobs.artifacts import KeptSteps
from jobs.repository.base import later
from jobs.rows import Artifact, Job, to_json


def keep(connection: Connection, job: Job, kept: KeptSteps, *, retention_seconds: float) -> None:
    """Publish finished steps, instead of those that an earlier attempt left: they are among these."""
    values = {
        "kept": to_json({"steps": kept.steps, "binding": kept.binding}),
        "metrics": to_json(kept.metrics),
        "artifacts_expire_at": later(retention_seconds),
    }
    connection.execute(update(t.jobs).where(t.jobs.c.id == job.id).values(**values))
    replace_artifacts(connection, job, [*kept.artifacts, kept.archive])
    kept.publish()


def replace_artifacts(connection: Connection, job: Job, artifacts: Sequence[Artifact]) -> None:
    """Make these the files of the job, and no others."""
    connection.execute(delete(t.artifacts).where(t.artifacts.c.job_id == job.id))
    if artifacts:
        connection.execute(insert(t.artifacts), [artifact_row(job, item) for item in artifacts])


def artifact_row(job: Job, artifact: Artifact) -> dict[str, object]:
    """The row of a published artifact of this job."""
    return {
        "job_id": job.id,
        "name": artifact.name,
        "media_type": artifact.media_type,
        "size": artifact.size,
        "sha256": artifact.sha256,
        "storage": artifact.storage,
        "published_at": artifact.published_at or job.finished_at,
        "archive_path": artifact.archive_path,
    }
