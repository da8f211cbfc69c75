"""What the service answers, as type checkers see it; at run time these are plain dicts."""

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypedDict

VerdictWord = Literal["pass", "fail", "inconclusive", "none"]


class Progress(TypedDict):
    """How far the present attempt is; `fraction` in 0…1."""

    fraction: float
    stage: str | None
    message: str | None
    eta_seconds: float | None


class JobError(TypedDict):
    """Why a job ended badly."""

    code: str
    message: str


class Job(TypedDict):
    """A job as it stands; `openapi.json` describes the fields, of which there may be more."""

    id: str
    kind: str
    state: str
    terminal: bool
    verdict: VerdictWord | None
    labels: dict[str, str]
    spec: dict[str, Any]
    gates: list[dict[str, Any]]
    progress: Progress
    attempt: int
    max_attempts: int
    reused_from: str | None
    error: JobError | None
    created_at: str
    started_at: str | None
    finished_at: str | None
    kept_steps: NotRequired[list[str]]
    links: dict[str, str]


class Check(TypedDict):
    """The result of one gate."""

    metric: str
    result: Literal["pass", "fail", "inconclusive"]
    value: float | None
    low: float | None
    high: float | None
    min: float | None
    max: float | None
    reason: str | None


class Verdict(TypedDict):
    """What the gates say of an ended job."""

    verdict: VerdictWord
    checks: list[Check]


class Artifact(TypedDict):
    """One published file."""

    name: str
    media_type: str
    size: int
    sha256: str
    links: dict[str, str]


class Link(TypedDict):
    """A signed URL: whoever has it may download."""

    url: str
    expires_at: str
    sha256: str


class Event(TypedDict):
    """Something that happened to a job."""

    seq: int
    time: str
    type: str
    attempt: int
    data: dict[str, Any]
