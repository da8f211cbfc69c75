"""The list of jobs: what its address asks for, and its rows."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast
from urllib.parse import urlencode

from api.context import Services
from api.dashboard.words import SIZES, ago, span
from api.views import rfc3339_or_none
from jobs.errors import InvalidError
from jobs.rows import Job, Page
from jobs.specs import KINDS
from jobs.states import RETRYABLE, State
from jobs.times import rfc3339

PAGE = 50
VERDICTS = ("pass", "fail", "inconclusive", "none")
_PREFIX = re.compile(r"[0-9A-Fa-f-]{1,36}")
MAX_LABELS = 8


@dataclass(frozen=True)
class Filters:
    """What the address asks for, in the words of `GET /v1/jobs`; what is no such word is left out."""

    state: str = ""
    kind: str = ""
    verdict: str = ""
    id_prefix: str = ""
    labels: tuple[tuple[str, str], ...] = field(default=())
    cursor: str = ""

    @classmethod
    def of(cls, query: Sequence[tuple[str, str]]) -> Filters:
        """From the parameters of an address; `label=team=nlp` is what the form sends for `label.team=nlp`."""
        given = {name: value.strip() for name, value in query}
        labels = {name[6:]: value for name, value in given.items() if name.startswith("label.") and name[6:]}
        key, _, value = given.get("label", "").partition("=")
        if key.strip():
            labels[key.strip()] = value.strip()
        prefix = given.get("id_prefix", "")
        return cls(
            state=given.get("state", "") if given.get("state") in set(State) else "",
            kind=given.get("kind", "") if given.get("kind") in KINDS else "",
            verdict=given.get("verdict", "") if given.get("verdict") in VERDICTS else "",
            id_prefix=prefix if _PREFIX.fullmatch(prefix) else "",
            labels=tuple(labels.items())[:MAX_LABELS],
            cursor=given.get("cursor", ""),
        )

    @property
    def any(self) -> bool:
        """Whether anything but the page is asked for."""
        return self != Filters(cursor=self.cursor)

    def query(self, **changes: str) -> str:
        """The address's query with some of it changed."""
        plain = {name: getattr(self, name) for name in ("state", "kind", "verdict", "id_prefix", "cursor")}
        plain |= {f"label.{key}": value for key, value in self.labels} | changes
        kept = {n: v for n, v in plain.items() if v or (n.startswith("label.") and n not in changes)}
        return urlencode(kept)

    def chips(self) -> list[tuple[str, str]]:
        """(label, the query without it) of each label that is asked for."""
        others = {key: replace(self, labels=_without(self.labels, key), cursor="") for key, _ in self.labels}
        return [(f"{key}: {value}" if value else key, others[key].query()) for key, value in self.labels]


def _without(labels: tuple[tuple[str, str], ...], gone: str) -> tuple[tuple[str, str], ...]:
    return tuple(pair for pair in labels if pair[0] != gone)


def find(services: Services, tenant: str | None, filters: Filters) -> Page:
    """The page of jobs; a cursor that no list has given is as good as none."""
    wanted: dict[str, Any] = {
        "state": State(filters.state) if filters.state else None,
        "kind": filters.kind or None,
        "verdict": filters.verdict or None,
        "id_prefix": filters.id_prefix or None,
        "labels": {key: value or None for key, value in filters.labels},
        "limit": PAGE,
    }
    try:
        return services.repository.list_jobs(tenant, cursor=filters.cursor or None, **wanted)
    except InvalidError:
        return services.repository.list_jobs(tenant, **wanted)


def table(services: Services, tenant: str | None, filters: Filters, page: Page) -> dict[str, Any]:
    """What the table shows."""
    now = services.repository.now()
    return {
        "jobs": [job_head(job, now) for job in page.items],
        "filters": filters,
        "next_page": "/?" + filters.query(cursor=page.next_cursor) if page.next_cursor else None,
        "states": [each.value for each in State],
        "kinds": KINDS,
        "verdicts": VERDICTS,
        "counts": _counts(services, tenant),
    }


def _counts(services: Services, tenant: str | None) -> dict[str, int]:
    """How many jobs there are in each state that somebody may have to look after."""
    found: dict[str, int] = {}
    for (state, _kind), count in services.repository.count_states(tenant).items():
        found[state] = found.get(state, 0) + count
    return {state: found[state] for state in ("running", "queued", "failed") if found.get(state)}


def job_head(job: Job, now: int) -> dict[str, Any]:
    """A job for the list and for the head of its page; `now` in milliseconds."""
    return {
        "id": job.id,
        "short_id": job.id[-12:],
        "tenant": job.tenant,
        "kind": job.kind,
        "subject": subject(job.spec),
        "what": what(job.kind, job.spec),
        "state": job.state.value,
        "terminal": job.terminal,
        "retryable": job.state in RETRYABLE,
        "verdict": job.verdict,
        "labels": job.labels,
        "queue": job.queue,
        "attempt": job.attempt or "not started",
        "percent": _percent(job),
        "stage": job.progress.stage,
        "message": job.progress.message,
        "eta": span(job.progress.eta_seconds) if job.progress.eta_seconds else None,
        "error": job.error,
        "execution": job.execution,
        "execution_reason": job.execution_reason,
        "reused_from": job.reused_from,
        "warnings": [item["message"] for item in job.warnings],
        "files_until": rfc3339_or_none(job.artifacts_expire_at),
        "created_at": rfc3339(job.created_at),
        "started_at": rfc3339_or_none(job.started_at),
        "finished_at": rfc3339_or_none(job.finished_at),
        "created_ago": ago(now - job.created_at),
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
    if model.get("source") == "upload":
        return f"upload {str(model.get('id'))[-12:]}"
    return str(model.get("name") or model.get("id") or "")


def what(kind: str, spec: Mapping[str, Any]) -> str:
    """What a prune does, in few words; nothing for other kinds, whose name says it."""
    if kind != "prune":
        return ""
    parts = [cast("str", spec.get("pruning_type") or "")]
    parts += [size.short.format(spec[name]) for name, size in SIZES.items() if spec.get(name) is not None]
    if spec.get("preset") not in (None, "guide"):
        parts.append(str(spec["preset"]))
    return " · ".join(part for part in parts if part)


def _percent(job: Job) -> int | None:
    if job.state is State.SUCCEEDED:
        return 100
    return None if job.progress.fraction is None else int(job.progress.fraction * 100)


def _duration(job: Job) -> str | None:
    if job.started_at is None or job.finished_at is None:
        return None
    return span((job.finished_at - job.started_at) / 1000)
