"""Rows of the repository as what the API answers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from email.utils import format_datetime
from typing import Any, cast

from api import models
from jobs import rows
from jobs.specs import AnyRequest
from jobs.specs.deprecated import deprecations_in
from jobs.times import rfc3339
from jobs.verdict import interval


def rfc3339_or_none(milliseconds: int | None) -> str | None:
    """An RFC 3339 time, or None for what has not come to pass."""
    return None if milliseconds is None else rfc3339(milliseconds)


def etag(job: rows.Job | rows.Version) -> str:
    """The validator of a job's representation: its row version."""
    return f'"{job.version}"'


def job_links(job: rows.Job) -> dict[str, str]:
    """Where to go from a job; only what makes sense in its state."""
    base = f"/v1/jobs/{job.id}"
    links = {"self": base, "events": f"{base}/events", "attempts": f"{base}/attempts"}
    links["logs"] = f"{base}/logs"
    if job.has_results:
        links |= {name: f"{base}/{name}" for name in ("artifacts", "manifest", "metrics")}
    if job.terminal:
        links["verdict"] = f"{base}/verdict"
    else:
        links["cancel"] = f"{base}/cancel"
    return links | {"dashboard": f"/jobs/{job.id}"}


def job_view(job: rows.Job, queue_position: int | None = None) -> models.Job:
    """A job with its links, and its place in the queue where that was looked for."""
    return models.Job.model_construct(
        id=job.id,
        kind=job.kind,
        state=job.state,
        terminal=job.terminal,
        verdict=cast("models.VerdictWord | None", job.verdict or ("none" if job.terminal else None)),
        labels=job.labels,
        spec=job.spec,
        resolved=job.spec if job.resolved is None else job.resolved,
        warnings=[models.JobWarning.model_construct(**warning) for warning in job.warnings],
        gates=job.gates,
        priority=job.priority,
        queue=job.queue,
        queue_position=queue_position,
        timeout_seconds=job.timeout_seconds,
        progress=models.Progress.model_construct(
            fraction=job.progress.fraction or 0.0,
            stage=job.progress.stage,
            message=job.progress.message,
            eta_seconds=job.progress.eta_seconds,
        ),
        attempt=job.attempt,
        max_attempts=job.max_attempts,
        reused_from=job.reused_from,
        error=error_view(job.error),
        created_at=rfc3339(job.created_at),
        started_at=rfc3339_or_none(job.started_at),
        finished_at=rfc3339_or_none(job.finished_at),
        artifacts_expire_at=rfc3339_or_none(job.artifacts_expire_at),
        execution=job.execution,
        execution_reason=job.execution_reason,
        kept_steps=job.kept_steps,
        created_by=None if job.created_by is None else json.loads(job.created_by),
        links=job_links(job),
    )


def error_view(error: rows.JobError | None) -> models.ErrorBody | None:
    """Why something ended badly, if it did."""
    return None if error is None else models.ErrorBody(code=error.code, message=error.message)


def event_view(event: rows.Event) -> models.Event:
    """One event."""
    return models.Event(
        seq=event.seq, time=rfc3339(event.time), type=event.type, attempt=event.attempt, data=event.data
    )


def attempt_view(attempt: rows.Attempt) -> models.Attempt:
    """One attempt."""
    return models.Attempt(
        number=attempt.number,
        worker_id=attempt.worker_id,
        outcome=attempt.outcome.value,
        started_at=rfc3339(attempt.started_at),
        finished_at=rfc3339_or_none(attempt.finished_at),
        error=error_view(attempt.error),
    )


def artifact_view(job_id: str, artifact: rows.Artifact) -> models.Artifact:
    """One artifact with the places to fetch it and to make a link of it."""
    base = f"/v1/jobs/{job_id}/artifacts/{artifact.name}"
    return models.Artifact(
        name=artifact.name,
        media_type=artifact.media_type,
        size=artifact.size,
        sha256=artifact.sha256,
        links={"self": base, "links": f"{base}/links"},
    )


def check_view(check: rows.Check, metrics: Mapping[str, Any]) -> models.Check:
    """The result of one gate, with the interval that the job's metrics give its value."""
    fields = {name: getattr(check, name) for name in ("metric", "result", "value", "min", "max", "reason")}
    return models.Check.model_validate({**fields, **interval(check.metric, metrics)})


def webhook_view(webhook: rows.Webhook) -> models.Webhook:
    """A webhook without its secret."""
    return models.Webhook(
        id=webhook.id, url=webhook.url, events=webhook.events, created_at=rfc3339(webhook.created_at)
    )


def delivery_view(delivery: rows.Delivery) -> models.Delivery:
    """One delivery; its payload and URL stay where they are."""
    return models.Delivery.model_validate(
        {
            "id": delivery.id,
            "job_id": delivery.job_id,
            "event_type": delivery.event_type,
            "state": delivery.state,
            "tries": delivery.tries,
            "next_try_at": rfc3339_or_none(delivery.next_try_at),
            "last_status": delivery.last_status,
            "last_error": delivery.last_error,
            "created_at": rfc3339(delivery.created_at),
            "delivered_at": rfc3339_or_none(delivery.delivered_at),
        }
    )


def key_view(key: rows.ApiKey) -> models.Key:
    """A key without its secret."""
    return models.Key(
        id=key.id,
        tenant=key.tenant,
        name=key.name,
        scopes=sorted(key.scopes),
        hint=key.hint,
        created_at=rfc3339(key.created_at),
        expires_at=rfc3339_or_none(key.expires_at),
        revoked_at=rfc3339_or_none(key.revoked_at),
    )


def deprecation_headers(request: AnyRequest) -> dict[str, str]:
    """`Deprecation` (RFC 9745) and `Sunset` (RFC 8594) of an answer whose request used what is to go.

    Since when the oldest deprecated field of a request is deprecated, and when the first of them goes.
    """
    found = [item for _, item in deprecations_in(request.kind, request.spec)]
    if not found:
        return {}
    since, sunset = min(item.since for item in found), min(item.sunset for item in found)
    return {
        "Deprecation": f"@{int(since.timestamp())}",  # a date of RFC 9651, section 3.3.7
        "Sunset": format_datetime(sunset, usegmt=True),
    }
