"""What the dashboard's templates show, worked out from rows: no HTTP and no HTML here."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from api.context import Services
from api.views import rfc3339_or_none
from jobs.rows import Artifact, Check, Event, Job
from jobs.states import State
from jobs.times import rfc3339

MAX_EVENTS = 5000
SHOWN_EVENTS = 60
_PAIRS = (
    ("Parameters", "original_parameters", "pruned_parameters"),
    ("Perplexity", "perplexity_dense", "perplexity_pruned"),
    ("Perplexity", "perplexity_baseline", "perplexity"),
    ("Tokens per second", "tokens_per_second_baseline", "tokens_per_second"),
)


def number(value: Any) -> str:
    """A metric as text: grouped integers, four significant digits, words for truth values."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        if not math.isfinite(value):
            return str(value)
        return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"
    return str(value)


def compact(value: float) -> str:
    """A number short enough to stand over a bar."""
    for limit, unit in ((1e9, " B"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g}{unit}"
    return f"{value:.3g}"


def size(count: int) -> str:
    """Bytes in binary units."""
    amount = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"


def span(seconds: float) -> str:
    """A length of time in one or two units."""
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} days"


def words(text: str) -> str:
    """`timed_out` as people write it."""
    return text.replace("_", " ")


FILTERS = {
    "number": number,
    "size": size,
    "words": words,
    "moment": lambda text: f"{datetime.fromisoformat(text):%-d %b %Y, %H:%M} UTC",
    "clock": lambda text: text[11:19],
}


def job_head(job: Job, now: int) -> dict[str, Any]:
    """A job for the list and for the head of its page; `now` in milliseconds."""
    return {
        "id": job.id,
        "short_id": job.id[-12:],
        "tenant": job.tenant,
        "kind": job.kind,
        "subject": subject(job.spec),
        "state": job.state.value,
        "terminal": job.terminal,
        "verdict": job.verdict,
        "labels": job.labels,
        "queue": job.queue,
        "attempt": job.attempt or "not started",
        "percent": _percent(job),
        "stage": job.progress.stage,
        "message": job.progress.message,
        "eta": span(job.progress.eta_seconds) if job.progress.eta_seconds else None,
        "error": job.error,
        "warnings": [item["message"] for item in job.warnings],
        "files_until": rfc3339_or_none(job.artifacts_expire_at),
        "created_at": rfc3339(job.created_at),
        "started_at": rfc3339_or_none(job.started_at),
        "finished_at": rfc3339_or_none(job.finished_at),
        "created_ago": _ago(now - job.created_at),
        "duration": _duration(job),
    }


def subject(spec: Mapping[str, Any]) -> str:
    """What a job is about: its model, or how many steps it has."""
    if "steps" in spec:
        return " → ".join(str(step.get("name")) for step in spec["steps"])
    model = spec.get("model") or {}
    if model.get("source") == "job":
        step = f", step {model['step']}" if model.get("step") else ""
        return f"job {str(model.get('job_id'))[-12:]}{step}"
    return str(model.get("name") or model.get("id") or "")


def _percent(job: Job) -> int | None:
    if job.state is State.SUCCEEDED:
        return 100
    return None if job.progress.fraction is None else int(job.progress.fraction * 100)


def _ago(milliseconds: int) -> str:
    seconds = max(milliseconds, 0) / 1000
    return "just now" if seconds < 5 else f"{span(round(seconds / 5) * 5 if seconds < 60 else seconds)} ago"


def _duration(job: Job) -> str | None:
    if job.started_at is None or job.finished_at is None:
        return None
    return span((job.finished_at - job.started_at) / 1000)


def job_page(services: Services, job: Job, now: int) -> dict[str, Any]:
    """Everything that the page of one job shows."""
    repository = services.repository
    events = repository.list_events(job.id, after=max(job.last_seq - MAX_EVENTS, 0), limit=MAX_EVENTS)
    done = job.has_results
    metrics = without_copies(repository.get_metrics(job.id) or {}) if done else {}
    artifacts = repository.list_artifacts(job.id) if done else []
    return {
        "job": job_head(job, now),
        "spec": json.dumps(job.spec, indent=2, ensure_ascii=False),
        "resolved": (
            None if job.resolved is None else json.dumps(job.resolved, indent=2, ensure_ascii=False)
        ),
        "events": [event_line(event) for event in reversed(events[-SHOWN_EVENTS:])],
        "timeline": timeline(events),
        "checks": [check_line(check) for check in repository.get_checks(job.id)] if job.terminal else [],
        "metrics": flat(metrics),
        "comparisons": comparisons(metrics),
        "plots": [plot(job.id, a) for a in artifacts if a.media_type.startswith("image/")],
        "artifacts": [file_line(job.id, a) for a in artifacts],
        "archive": _archive(services, job.id) if artifacts else None,
    }


def event_line(event: Event) -> dict[str, str]:
    """One event as a line; what it says is data from the worker, shown as text."""
    data = event.data
    told = [str(data[key]) for key in ("step", "stage", "message", "code") if data.get(key)]
    if "total" in data and data.get("total"):
        told.insert(1, f"{data.get('done')}/{data['total']}")
    return {"time": rfc3339(event.time), "type": event.type, "text": " · ".join(told)}


@dataclass(frozen=True)
class Comparison:
    """A number before and after, for a chart with two bars."""

    title: str
    before: float
    after: float

    def as_dict(self) -> dict[str, Any]:
        """With the texts that stand over the bars."""
        return {
            "title": self.title,
            "before": self.before,
            "after": self.after,
            "before_text": compact(self.before),
            "after_text": compact(self.after),
        }


def without_copies(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics, of a pipeline only those with their step's name: many stand there without it, too."""
    copies = {name.partition(".")[2] for name in metrics}
    return {name: value for name, value in metrics.items() if name not in copies}


def comparisons(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The pairs among the metrics; a pipeline's are found under the name of each step."""
    found = []
    for title, before, after in _PAIRS:
        for name in metrics:
            prefix = name.removesuffix(before)
            pair = metrics.get(name), metrics.get(prefix + after)
            if name.endswith(before) and (not prefix or prefix.endswith(".")) and all(map(_drawable, pair)):
                label = f"{prefix.rstrip('.')}: {title.lower()}" if prefix else title
                found.append(Comparison(label, float(pair[0] or 0), float(pair[1] or 0)).as_dict())
    return found


def _drawable(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def timeline(events: Sequence[Event]) -> list[list[float]]:
    """[seconds since the newest attempt began, percent], for the attempt that is shown."""
    newest = max((event.attempt for event in events), default=0)
    mine = [event for event in events if event.attempt == newest and "fraction" in event.data]
    points = [[(e.time - mine[0].time) / 1000, round(float(e.data["fraction"] or 0) * 100, 1)] for e in mine]
    step = max(1, len(points) // 400)
    return [*points[::step], *([points[-1]] if points and (len(points) - 1) % step else [])]


def flat(metrics: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The metrics that fit on a line; lists and tables stay in metrics.json."""
    return [(name, value) for name, value in metrics.items() if not isinstance(value, dict | list)]


def check_line(check: Check) -> dict[str, Any]:
    """One gate with its bound in words."""
    bounds = [
        f"≥ {number(check.min)}" if check.min is not None else "",
        f"≤ {number(check.max)}" if check.max is not None else "",
    ]
    return {
        "metric": check.metric,
        "result": check.result,
        "value": check.value,
        "reason": check.reason,
        "bound": " and ".join(bound for bound in bounds if bound),
    }


def file_line(job_id: str, artifact: Artifact) -> dict[str, Any]:
    """One file to download."""
    return {
        "name": artifact.name,
        "size": artifact.size,
        "sha256": artifact.sha256,
        "url": f"/ui/jobs/{job_id}/artifacts/{artifact.name}",
    }


def plot(job_id: str, artifact: Artifact) -> dict[str, str]:
    """One picture."""
    title = artifact.name.rpartition(".")[0].replace("_", " ")
    return {"title": title, "url": f"/ui/jobs/{job_id}/artifacts/{artifact.name}"}


def _archive(services: Services, job_id: str) -> dict[str, Any] | None:
    found = services.repository.get_artifact(job_id, "*")
    return None if found is None else {"size": found.size, "url": f"/ui/jobs/{job_id}/archive"}
