"""What the repository returns: frozen values with plain types (times in milliseconds since the epoch)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic_core import from_json

from jobs.states import TERMINAL, Outcome, State

JsonObject = dict[str, Any]
MAX_WARNING_LENGTH = 2000


@dataclass(frozen=True)
class Progress:
    """How far the present attempt is; `fraction` in 0…1."""

    fraction: float | None = None
    stage: str | None = None
    message: str | None = None
    eta_seconds: float | None = None


@dataclass(frozen=True)
class JobError:
    """Why a job ended badly."""

    code: str
    message: str


@dataclass(frozen=True)
class Job:
    """A job as it stands."""

    id: str
    tenant: str
    kind: str
    spec: JsonObject
    labels: dict[str, str]
    gates: list[JsonObject]
    priority: int
    queue: str
    timeout_seconds: int
    queue_deadline: int | None
    webhook_url: str | None
    request_id: str | None
    traceparent: str | None
    reuse_key: str | None
    reused_from: str | None
    state: State
    version: int
    last_seq: int
    attempt: int
    lost_attempts: int
    max_attempts: int
    worker_id: str | None
    lease_expires_at: int | None
    progress: Progress
    error: JobError | None
    verdict: str | None
    created_at: int
    queued_at: int
    started_at: int | None
    finished_at: int | None
    artifacts_expire_at: int | None
    execution: str | None = None
    execution_reason: str | None = None
    created_by: str | None = None
    """JSON of who made it."""
    kept: JsonObject | None = None
    """`{"steps", "binding"}`: which steps of a pipeline are done though it has not succeeded."""
    resolved: JsonObject | None = None
    warnings: list[JsonObject] = field(default_factory=list)

    @property
    def terminal(self) -> bool:
        """Whether the job has ended."""
        return self.state in TERMINAL

    @property
    def kept_steps(self) -> list[str]:
        """The steps of a pipeline whose files and metrics are kept though it has not succeeded (yet)."""
        return [] if self.kept is None else list(self.kept["steps"])

    @property
    def has_results(self) -> bool:
        """Whether there are metrics, and files as long as they are kept."""
        return self.state is State.SUCCEEDED or self.kept is not None


@dataclass(frozen=True)
class Claim:
    """The right to work on a job: valid until another attempt gets a higher number."""

    job: Job
    attempt: int


@dataclass(frozen=True)
class Attempt:
    """One try at a job."""

    job_id: str
    number: int
    worker_id: str
    outcome: Outcome
    started_at: int
    finished_at: int | None
    error: JobError | None


@dataclass(frozen=True)
class AttemptLog:
    """What one attempt said: its newest lines; `dropped` is how many older ones are no longer kept."""

    attempt: Attempt
    lines: list[str]
    dropped: int


@dataclass(frozen=True)
class Event:
    """Something that happened to a job; `seq` counts from 1 without gaps within the job."""

    job_id: str
    seq: int
    time: int
    type: str
    attempt: int
    data: JsonObject


@dataclass(frozen=True)
class Artifact:
    """One published file; `storage` ("{job}/{attempt}") says where the store keeps its bytes.

    `archive_path` is set where the archive has the file under another name than its own (`step/file`).
    """

    name: str
    media_type: str
    size: int
    sha256: str
    storage: str = ""
    published_at: int = 0
    archive_path: str | None = None

    @property
    def path(self) -> str:
        """Where the file lies in the archive of its job."""
        return self.archive_path or self.name


def storage_of(job_id: str, attempt: int) -> str:
    """The folder of an attempt's published files in the store."""
    return f"{job_id}/{attempt}"


@dataclass(frozen=True)
class Page:
    """One page of jobs, newest first; `next_cursor` is None on the last page."""

    items: list[Job]
    next_cursor: str | None


@dataclass(frozen=True)
class Version:
    """What waiters compare: the row version and the newest event's number."""

    version: int
    last_seq: int
    terminal: bool


@dataclass(frozen=True)
class OutboxEntry:
    """A message that is due: publish the job's id to `queue`."""

    id: int
    job_id: str
    queue: str
    priority: int
    traceparent: str | None


@dataclass(frozen=True)
class ApiKey:
    """An API key without its secret."""

    id: str
    tenant: str
    name: str
    hint: str
    scopes: frozenset[str]
    created_at: int
    expires_at: int | None
    revoked_at: int | None
    subject: str | None = None
    """Whose token it was issued for, if it was."""


@dataclass(frozen=True)
class Webhook:
    """A tenant's standing wish to be told; `events` empty means every terminal event."""

    id: str
    tenant: str
    url: str
    secret: str
    events: list[str]
    created_at: int


@dataclass(frozen=True)
class Delivery:
    """One message to one URL; `secret` signs it."""

    id: str
    tenant: str
    webhook_id: str | None
    job_id: str
    url: str
    secret: str
    event_type: str
    payload: str
    state: str
    tries: int
    next_try_at: int | None
    last_status: int | None
    last_error: str | None
    created_at: int
    delivered_at: int | None


@dataclass(frozen=True)
class LocalModel:
    """A model that a worker has under its models folder; `facts` are the header reader's, as JSON.

    `problem` is set (code, message) when the folder cannot be used; a job that names it is refused with it.
    """

    name: str
    revision: str | None
    facts: JsonObject = field(default_factory=dict)
    problem: JobError | None = None


@dataclass(frozen=True)
class Worker:
    """A worker as of its last beat."""

    id: str
    queues: list[str]
    devices: list[str]
    models: list[LocalModel]
    files: dict[str, list[str]]
    allow_hub: bool
    code_version: str
    draining: bool
    started_at: int
    seen_at: int
    memory_bytes: int | None = None
    stalled: bool = False
    asleep: bool = False
    """Whether it is gone, and its like can be started on demand."""
    suites: dict[str, JsonObject] = field(default_factory=dict)
    """What its suite files hold: `{"kind", "items"}` by name."""


@dataclass(frozen=True)
class Idempotency:
    """Outcome of `begin_idempotent`: either a token to answer with, or the first answer."""

    token: str | None
    response: str | None
    job_id: str | None


@dataclass(frozen=True)
class Check:
    """One gate's result: "pass", "fail" or "inconclusive"."""

    metric: str
    result: str
    value: float | None
    min: float | None
    max: float | None
    reason: str | None = None


def to_json(value: Any) -> str:
    """Strict, compact JSON (no NaN, no Infinity); a lone surrogate, which UTF-8 can't spell, becomes "?"."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"), ensure_ascii=False)
    return text.encode("utf-8", "replace").decode()


def _printable(character: str) -> str:
    if character.isprintable() or character in "\n\t":
        return character
    return character.encode("unicode_escape").decode()


def printable(message: str) -> str:
    """A message as a text column can hold it: what neither database takes is spelled out."""
    return "".join(map(_printable, message))


def warning(code: str, message: str) -> JsonObject:
    """Something that a person should know of a job or its result, as the job has it."""
    return {"code": code[:64], "message": printable(message)[:MAX_WARNING_LENGTH]}


def job_error(row: Mapping[Any, Any]) -> JobError | None:
    """The error columns of a row, if set."""
    if row["error_code"] is None:
        return None
    return JobError(code=row["error_code"], message=row["error_message"] or "")


ARTIFACT_FIELDS = ("name", "media_type", "size", "sha256", "storage", "published_at", "archive_path")
"""The columns of `artifacts` that make an Artifact."""
JOB_FIELDS = (
    *("id", "tenant", "kind", "spec", "labels", "gates", "priority", "queue", "timeout_seconds"),
    *("queue_deadline", "webhook_url", "request_id", "traceparent", "reuse_key", "reused_from", "state"),
    *("version", "last_seq", "attempt", "lost_attempts", "max_attempts", "worker_id", "lease_expires_at"),
    *("progress_fraction", "progress_stage", "progress_message", "eta_seconds", "error_code"),
    *("error_message", "verdict", "created_at", "queued_at", "started_at", "finished_at"),
    *("artifacts_expire_at", "execution", "execution_reason", "created_by", "kept", "resolved"),
    "warnings",
)
"""The columns of `jobs` that make a Job, in the order in which `job_from_row` takes them."""
_STATES = {state.value: state for state in State}
_ERROR = JOB_FIELDS.index("error_code")
_PROGRESS = slice(JOB_FIELDS.index("progress_fraction"), _ERROR)


def job_from_row(row: Sequence[Any]) -> Job:
    """A row of JOB_FIELDS as a value; by position and with pydantic's parser, thrice as fast."""
    code, message = row[_ERROR : _ERROR + 2]
    values: list[Any] = [
        *row[:3],
        from_json(row[3]),
        from_json(row[4]),
        from_json(row[5]),
        *row[6:15],
        _STATES[row[15]],
        *row[16 : _PROGRESS.start],
        Progress(*row[_PROGRESS]),
        None if code is None else JobError(code, message or ""),
        *row[_ERROR + 2 : -3],
        None if row[-3] is None else from_json(row[-3]),
        None if row[-2] is None else from_json(row[-2]),
        [] if row[-1] is None else from_json(row[-1]),
    ]
    return Job(*values)


def models_from_json(items: Sequence[JsonObject]) -> list[LocalModel]:
    """The workers table's `models` column as values."""
    return [
        LocalModel(
            name=item["name"],
            revision=item["revision"],
            facts=item["facts"],
            problem=JobError(**item["problem"]) if item["problem"] else None,
        )
        for item in items
    ]
