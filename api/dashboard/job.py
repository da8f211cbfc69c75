"""What the page of one job shows, worked out from rows: no HTTP and no HTML here."""

from __future__ import annotations

import json
from typing import Any

from api.context import Services
from api.dashboard import curl, findings, metrics as tables, timeline
from api.dashboard.listing import job_head
from api.verdict import wording
from api.views import check_view
from api.waiting.logs import Place, numbered
from jobs.rows import Artifact, Check, Job

MAX_EVENTS = 2000
LOG_LINES = 200


def body(services: Services, job: Job) -> dict[str, Any]:
    """Everything that changes while the job runs."""
    repository = services.repository
    events = repository.list_events(job.id, after=max(job.last_seq - MAX_EVENTS, 0), limit=MAX_EVENTS)
    done = job.has_results
    all_metrics = (repository.get_metrics(job.id) or {}) if done else {}
    metrics = tables.without_copies(all_metrics)
    artifacts = repository.list_artifacts(job.id) if done else []
    attempts = repository.list_attempts(job.id) if job.attempt > 1 else []
    return {
        "job": job_head(job, repository.now()),
        "moments": timeline.moments(events),
        "stages": timeline.stages(events),
        "attempts": attempts,
        "checks": [_check(c, all_metrics) for c in repository.get_checks(job.id)] if job.terminal else [],
        "metrics": tables.tables(metrics),
        "charts": findings.charts_of(services, metrics, artifacts) if done else [],
        "plots": [_plot(job.id, a) for a in artifacts if a.media_type.startswith("image/")],
        "reports": [_file(job.id, a) for a in artifacts if a.name.endswith("report.html")],
        "artifacts": [_file(job.id, a) for a in artifacts],
        "archive": _archive(services, job.id) if artifacts else None,
    }


def fixed(services: Services, job: Job) -> dict[str, Any]:
    """What stays as it is: the spec, and the commands that ask for the same."""
    base = services.settings.public_url
    request = {"kind": job.kind, "spec": _given(job.spec)}
    request |= {name: value for name, value in (("labels", job.labels), ("gates", job.gates)) if value}
    return {
        "spec": json.dumps(job.spec, indent=2, ensure_ascii=False),
        "resolved": (
            None if job.resolved is None else json.dumps(job.resolved, indent=2, ensure_ascii=False)
        ),
        "curl_again": curl.resubmit(base, request),
        "curl_job": curl.get(base, f"/v1/jobs/{job.id}"),
        "curl_verdict": curl.get(base, f"/v1/jobs/{job.id}/verdict?strict=1&wait=60"),
    }


def _given(value: Any) -> Any:
    """A spec without its nulls, which say nothing that leaving them out would not."""
    if isinstance(value, dict):
        return {name: _given(part) for name, part in value.items() if part is not None}
    return [_given(part) for part in value] if isinstance(value, list) else value


def log(services: Services, job: Job) -> dict[str, Any]:
    """The newest lines of the log, and the place behind which a stream goes on."""
    lines: list[tuple[Place, str]] = [
        item for attempt in services.repository.list_logs(job.id) for item in numbered(attempt)
    ]
    last = lines[-1][0] if lines else (0, 0)
    return {
        "log": [line for _, line in lines[-LOG_LINES:]],
        "log_cut": max(0, len(lines) - LOG_LINES),
        "log_place": f"{last[0]}.{last[1]}",
    }


def _check(check: Check, metrics: dict[str, Any]) -> dict[str, Any]:
    """One gate in the words of the verdict."""
    told = check_view(check, metrics).model_dump()
    return {**told, "value": wording.value(told), "bound": wording.bound(told)}


def _file(job_id: str, artifact: Artifact) -> dict[str, Any]:
    return {
        "name": artifact.name,
        "size": artifact.size,
        "sha256": artifact.sha256,
        "url": f"/ui/jobs/{job_id}/artifacts/{artifact.name}",
    }


def _plot(job_id: str, artifact: Artifact) -> dict[str, str]:
    title = artifact.name.rpartition(".")[0].replace("_", " ")
    return {"title": title, "url": f"/ui/jobs/{job_id}/artifacts/{artifact.name}"}


def _archive(services: Services, job_id: str) -> dict[str, Any] | None:
    found = services.repository.get_artifact(job_id, "*")
    return None if found is None else {"size": found.size, "url": f"/ui/jobs/{job_id}/archive"}
