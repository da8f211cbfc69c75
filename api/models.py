"""What the API answers, declared: pydantic serialises these without walking them in Python."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from jobs.states import State

VerdictWord = Literal["pass", "fail", "inconclusive", "none"]


class Model(BaseModel, defer_build=True):
    """What checks and serialises is built when it is first needed: at its start no process waits for all."""


class Progress(Model):
    """How far the present attempt is; `fraction` in 0…1."""

    fraction: float
    stage: str | None
    message: str | None
    eta_seconds: float | None


class ErrorBody(Model):
    """Why a job ended badly."""

    code: str
    message: str


class JobWarning(Model):
    """Something that a person should know of a job or its result; the code is for scripts."""

    code: str
    message: str


class Job(Model):
    """A job as it stands."""

    id: str
    kind: str
    state: State
    terminal: bool
    verdict: VerdictWord | None = Field(description="null until the job has ended")
    labels: dict[str, str]
    spec: dict[str, Any] = Field(description="as it was sent, with every default")
    resolved: dict[str, Any] = Field(description="as it is carried out: what a preset stands for written out")
    warnings: list[JobWarning]
    gates: list[dict[str, Any]]
    priority: int = Field(description="within the tenant: it never reaches across tenants")
    queue: str
    queue_position: int | None = Field(
        description="of a queued job that is read by itself: how many would start before it as things stand"
    )
    timeout_seconds: int
    progress: Progress
    attempt: int
    max_attempts: int
    reused_from: str | None = Field(description="the job whose result this one shares")
    error: ErrorBody | None
    created_at: str
    started_at: str | None
    finished_at: str | None
    artifacts_expire_at: str | None = Field(description="when its files are removed; null without files")
    execution: str | None = Field(
        description="memory or streamed: how a prune is carried out, once an attempt has decided it"
    )
    execution_reason: str | None = Field(description="why, in words")
    created_by: dict[str, str] | None = Field(description="who made it: its key_id or subject")
    kept_steps: list[str] = Field(
        description="of a pipeline without success: the finished steps, whose files and metrics are kept"
    )
    links: dict[str, str]


class JobPage(Model):
    """One page of jobs, newest first."""

    items: list[Job]
    next_cursor: str | None


class Estimate(Model):
    """What a job would need, from the model's headers alone; null for a model that is not here yet (hub)."""

    peak_memory_bytes: int | None
    output_bytes: int | None
    seconds: float | None
    queue: str
    execution: str | None = Field(
        description="memory or streamed, of a prune; null for other jobs, and while the model is not known"
    )
    reason: str | None = Field(description="why, in words")
    warnings: list[JobWarning] = Field(description="what the job would be created with")


class Event(Model):
    """Something that happened to a job."""

    seq: int
    time: str
    type: str
    attempt: int
    data: dict[str, Any]


class EventList(Model):
    """The events of a job, oldest first, at most 1,000; `terminal` says that none comes after these."""

    items: list[Event]
    terminal: bool


class Attempt(Model):
    """One try at a job."""

    number: int
    worker_id: str
    outcome: str
    started_at: str
    finished_at: str | None
    error: ErrorBody | None


class AttemptList(Model):
    """The attempts of a job, oldest first."""

    items: list[Attempt]


class Artifact(Model):
    """One published file."""

    name: str
    media_type: str
    size: int
    sha256: str
    links: dict[str, str]


class LinkRequest(Model, extra="forbid", strict=True):
    """How long a link shall work."""

    ttl_seconds: int = Field(default=3600, ge=1, description="at most what the service allows (86400)")


class Link(Model):
    """A signed URL: whoever has it may download."""

    url: str
    expires_at: str
    sha256: str


class Check(Model):
    """The result of one gate."""

    metric: str
    result: Literal["pass", "fail", "inconclusive"]
    value: float | None
    low: float | None = Field(description="lower end of the value's interval, where the job reports one")
    high: float | None = Field(description="upper end of it")
    min: float | None
    max: float | None
    reason: str | None


class Verdict(Model):
    """What the gates say of an ended job."""

    verdict: VerdictWord
    checks: list[Check]


class ModelEntry(Model):
    """A model that can be named in a job."""

    source: Literal["local"] = "local"
    name: str
    revision: str | None
    facts: dict[str, Any]
    queues: list[str]
    last_seen: str | None = Field(
        description="when a worker last had it, if its workers are asleep; null while one is alive"
    )
    error: ErrorBody | None = Field(description="why it can't be used, if it can't")


class ModelList(Model):
    """What the live workers can load."""

    items: list[ModelEntry]
    hub: bool = Field(description="whether hub ids are allowed")


class CalibrationFile(Model):
    """A text that a job can name in `calibration`, `evaluation` and `text`."""

    source: Literal["local"] = "local"
    name: str
    queues: list[str] = Field(description="whose workers have it")


class CalibrationList(Model):
    """The files of the live workers' calibration folders."""

    items: list[CalibrationFile]


class SuiteFile(Model):
    """A file that a bias job can name as its `suite`."""

    source: Literal["local"] = "local"
    name: str
    kind: Literal["crows_pairs", "stereoset", "prompt_pairs"] | None = Field(
        description="what it holds; null for a file that is none of these"
    )
    items: int | None = Field(description="how many sentences, groups or pairs")
    queues: list[str] = Field(description="whose workers have it")


class PublishedFile(Model):
    """A file of a suite of the catalogue; without `sha256` an operator provides it."""

    name: str
    url: str
    sha256: str | None
    size: int | None


class CatalogueSuite(Model):
    """A suite that a bias job can name in `suites`."""

    source: Literal["catalogue"] = "catalogue"
    name: str
    title: str
    measures: str
    languages: list[str]
    licence: str
    citation: str
    page: str
    items: int = Field(description="about how many sentences, groups or pairs are published")
    metrics: list[str] = Field(description="a gate names them as suite.metric")
    category_metrics: list[str] = Field(description="a gate names them as suite.category.metric")
    categories: list[str] | None = Field(description="null: those that its files have")
    files: list[PublishedFile]
    state: Literal["here", "missing"] = Field(description="whether a live worker has its data")
    queues: list[str] = Field(description="whose workers have it")


class SuiteList(Model):
    """The suites of the catalogue, and the files of the live workers' suites folders."""

    items: list[SuiteFile | CatalogueSuite]


class WebhookRequest(Model, extra="forbid", strict=True):
    """Where to send what happens to this tenant's jobs."""

    url: str
    events: list[str] = Field(default=[], max_length=16, description="empty means every end of a job")


class Webhook(Model):
    """A webhook without its secret."""

    id: str
    url: str
    events: list[str]
    created_at: str


class WebhookCreated(Webhook):
    """A new webhook with the secret that signs its deliveries, shown this once."""

    secret: str


class WebhookList(Model):
    """The tenant's webhooks."""

    items: list[Webhook]


class Delivery(Model):
    """One message to one URL."""

    id: str
    job_id: str
    event_type: str
    state: Literal["pending", "delivered", "failed"]
    tries: int
    next_try_at: str | None
    last_status: int | None
    last_error: str | None
    created_at: str
    delivered_at: str | None


class DeliveryList(Model):
    """The deliveries of a webhook, newest first."""

    items: list[Delivery]


class RedeliverRequest(Model, extra="forbid", strict=True):
    """Which delivery to send again; all that failed when none is named."""

    delivery_id: str | None = None


class Redelivered(Model):
    """How many deliveries will be sent again."""

    scheduled: int


Scope = Literal["jobs:read", "jobs:write", "admin"]


class KeyRequest(Model, extra="forbid", strict=True):
    """A new API key; only `admin` may name another tenant, and makes it by doing so."""

    tenant: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")
    scopes: list[Scope] = Field(default=["jobs:read", "jobs:write"], min_length=1, max_length=3)
    name: str = Field(default="", max_length=128)
    expires_at: str | None = Field(default=None, max_length=64, description="RFC 3339")


class TenantRequest(Model, extra="forbid", strict=True):
    """What can be changed of a tenant."""

    weight: float = Field(
        ge=0.01, le=1000, allow_inf_nan=False, description="its share of busy workers, as against others'"
    )


class Tenant(Model):
    """A tenant, and what it has of the workers."""

    name: str
    weight: float
    running: int = Field(description="its jobs that workers are at")
    queued: int
    engine_seconds_last_hour: float


class TenantList(Model):
    """Every tenant, by name."""

    items: list[Tenant]


class Key(Model):
    """An API key without its secret; `hint` is its last characters."""

    id: str
    tenant: str
    name: str
    scopes: list[str]
    hint: str
    created_at: str
    expires_at: str | None
    revoked_at: str | None


class KeyCreated(Model):
    """A new key, shown this once."""

    id: str
    key: str
    tenant: str
    scopes: list[str]
    name: str
    created_at: str
    expires_at: str | None
    webhook_secret: str = Field(description="signs the messages to the `webhook_url` of this tenant's jobs")


class KeyList(Model):
    """The keys of a tenant; of every tenant for `admin`."""

    items: list[Key]


class Live(Model):
    """This process answers."""

    status: Literal["ok"] = "ok"


class Ready(Model):
    """Whether a job would run, check by check."""

    status: Literal["ready", "not_ready"]
    checks: dict[str, str]
