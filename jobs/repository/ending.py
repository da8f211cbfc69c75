"""How a job ends: its columns, the verdict, the attempt's row, files, webhook messages: one transaction."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy import ColumnElement, Connection, delete, insert, select, update

from jobs import tables as t
from jobs.artifacts import KeptSteps
from jobs.database import now_ms
from jobs.ids import new_id
from jobs.repository.base import change, later
from jobs.repository.warnings import of_metrics, together
from jobs.repository.whole.totals import note
from jobs.rows import Artifact, Job, JsonObject, printable, to_json
from jobs.states import Outcome, State
from jobs.verdict import evaluate
from jobs.webhooks import job_payload, wants

_OUTCOMES = {
    State.SUCCEEDED: Outcome.SUCCEEDED,
    State.FAILED: Outcome.FAILED,
    State.TIMED_OUT: Outcome.TIMED_OUT,
    State.CANCELLED: Outcome.CANCELLED,
}


def finish(
    connection: Connection,
    where: tuple[ColumnElement[bool], ...],
    target: State,
    *,
    retention_seconds: float,
    error: tuple[str, str] | None = None,
    metrics: JsonObject | None = None,
    outcome: Outcome | None = None,
    finished_at: int | None = None,
    **values: Any,
) -> Job | None:
    """Enter a terminal state if `where` still holds; returns the job as it ended, or None.

    Everything that hangs on the end (verdict, the attempt's outcome, webhook messages) is written here.
    `outcome` is the attempt's when it differs from the job's (a lost attempt that fails the job).
    """
    held = connection.execute(
        select(t.jobs.c.gates, t.jobs.c.worker_id, t.jobs.c.warnings).where(*where).with_for_update()
    ).one_or_none()
    if held is None:
        return None
    # gates judge results: a job without any has no verdict, whatever its gates say
    gates = json.loads(held.gates) if target is State.SUCCEEDED else []
    verdict, checks = evaluate(gates, metrics or {})
    code, message = (error[0], printable(error[1])) if error is not None else (None, None)
    warnings = together(json.loads(held.warnings or "[]"), of_metrics(metrics or {}))
    job = change(
        connection,
        where,
        target.value,
        {"verdict": verdict} if error is None else {"code": code, "message": message},
        state=target.value,
        finished_at=now_ms() if finished_at is None else finished_at,
        lease_expires_at=None,
        error_code=code,
        error_message=message,
        verdict=verdict,
        checks=to_json([asdict(check) for check in checks]),
        warnings=to_json(warnings) if warnings else None,
        **(_results(metrics or {}, retention_seconds) if target is State.SUCCEEDED else {}),
        **values,
    )
    if job is None:
        return None
    note(connection, "job", job, f"{target.value} {verdict if target is State.SUCCEEDED else 'none'}")
    if held.worker_id is not None:
        close_attempt(connection, job, outcome or _OUTCOMES[target], error)
    notify(connection, job)
    return job


def _results(metrics: JsonObject, retention_seconds: float) -> dict[str, Any]:
    """The columns of a result; any other end leaves what a pipeline's finished steps may have left."""
    return {"metrics": to_json(metrics), "artifacts_expire_at": later(retention_seconds)}


def close_attempt(
    connection: Connection, job: Job, outcome: Outcome, error: tuple[str, str] | None = None
) -> None:
    """Write how the job's newest attempt ended."""
    code, message = (error[0], printable(error[1])) if error is not None else (None, None)
    ended = connection.execute(
        update(t.attempts)
        .where(t.attempts.c.job_id == job.id, t.attempts.c.number == job.attempt)
        .values(outcome=outcome.value, finished_at=now_ms(), error_code=code, error_message=message)
        .returning(t.attempts.c.finished_at - t.attempts.c.started_at)
    ).scalar_one_or_none()
    if ended is not None:
        note(connection, "attempt", job, outcome.value, ended)


def notify(connection: Connection, job: Job) -> None:
    """Put a message into the queue of deliveries for each webhook that wants to hear of this end."""
    hooks = connection.execute(select(t.webhooks).where(t.webhooks.c.tenant == job.tenant)).mappings()
    event_type = f"job.{job.state.value}"
    targets = [(hook["id"], hook["url"]) for hook in hooks if wants(json.loads(hook["events"]), event_type)]
    if job.webhook_url is not None:
        targets.append((None, job.webhook_url))
    for webhook_id, url in targets:
        connection.execute(
            insert(t.webhook_deliveries).values(
                id=new_id(),
                tenant=job.tenant,
                webhook_id=webhook_id,
                job_id=job.id,
                url=url,
                event_type=event_type,
                payload=job_payload(job, event_type),
                state="pending",
                tries=0,
                next_try_at=now_ms(),
                created_at=now_ms(),
            )
        )


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
