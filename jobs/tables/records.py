"""What the service knows of its users and their jobs.

Times are integer milliseconds since the epoch, by the database's clock; JSON is text.

The indexes serve exactly the questions that the repository asks: a job by id; a page of a tenant's jobs
by state, by kind or by label, newest first; expired leases; due deliveries. None of them costs more with
100 000 jobs than with 1 000.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    String,
    Table,
    Text,
    false,
    text,
)

from jobs.states import Outcome, State
from jobs.tables.base import ID, NAME, SERIAL, metadata


def _one_of(column: str, values: type[State] | type[Outcome]) -> CheckConstraint:
    listed = ", ".join(f"'{value.value}'" for value in values)
    return CheckConstraint(f"{column} IN ({listed})", name=column)


def _job(*, primary_key: bool = False) -> Column[str]:
    return Column(
        "job_id", ID, ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False, primary_key=primary_key
    )


tenants = Table(
    "tenants",
    metadata,
    Column("name", NAME, primary_key=True),
    Column("webhook_secret", String(128), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("weight", Double, nullable=False, server_default=text("1")),  # how much its share counts
)


def _tenant(*, primary_key: bool = False) -> Column[str]:
    return Column("tenant", NAME, ForeignKey("tenants.name"), nullable=False, primary_key=primary_key)


jobs = Table(
    "jobs",
    metadata,
    Column("id", ID, primary_key=True),
    _tenant(),
    Column("kind", String(32), nullable=False),
    Column("spec", Text, nullable=False),
    Column("labels", Text, nullable=False),
    Column("gates", Text, nullable=False),
    Column("priority", Integer, nullable=False),
    Column("queue", String(64), nullable=False),
    Column("timeout_seconds", Integer, nullable=False),
    Column("queue_deadline", BigInteger),  # queued beyond this becomes expired
    Column("webhook_url", Text),
    Column("request_id", String(128)),
    Column("traceparent", String(128)),
    Column("reuse_key", String(64)),  # same key = same model bytes, spec and code
    Column("reused_from", ID),
    Column("state", String(16), nullable=False),
    Column("version", BigInteger, nullable=False),  # the ETag: rises with state, progress and error
    Column("last_seq", BigInteger, nullable=False),  # the number of the newest event
    Column("attempt", Integer, nullable=False),  # the fencing token; only counts up
    Column("lost_attempts", Integer, nullable=False),
    Column("max_attempts", Integer, nullable=False),
    Column("worker_id", NAME),
    Column("lease_expires_at", BigInteger),  # set exactly while an attempt holds the job
    Column("progress_fraction", Double),
    Column("progress_stage", String(64)),
    Column("progress_message", Text),
    Column("eta_seconds", Double),
    Column("error_code", String(64)),
    Column("error_message", Text),
    Column("metrics", Text),
    Column("verdict", String(16)),
    Column("checks", Text),
    Column("created_at", BigInteger, nullable=False),
    Column("queued_at", BigInteger, nullable=False),
    Column("published_at", BigInteger),  # when a message for the present queueing last went out
    Column("publish_count", Integer, nullable=False),  # republishing backs off with it
    Column("started_at", BigInteger),
    Column("finished_at", BigInteger),
    Column("artifacts_expire_at", BigInteger),  # retention; NULL once they are purged
    Column("execution", String(16)),  # of a prune, once an attempt has decided it: memory or streamed
    Column("execution_reason", Text),
    Column("created_by", Text),  # JSON of the actor; NULL for jobs older than this column
    Column("kept", Text),  # of a pipeline that has not succeeded: its finished steps, and what they depend on
    Column("resolved", Text),  # the spec as carried out, where that says more than the spec
    Column("warnings", Text),  # NULL: none
    _one_of("state", State),
    Index("ix_jobs_tenant_id", "tenant", "id"),
    Index("ix_jobs_tenant_state_id", "tenant", "state", "id"),
    Index("ix_jobs_tenant_kind_id", "tenant", "kind", "id"),
    Index("ix_jobs_tenant_verdict_id", "tenant", "verdict", "id"),
    Index("ix_jobs_state_id", "state", "id"),
    Index("ix_jobs_kind_id", "kind", "id"),
    Index("ix_jobs_verdict_id", "verdict", "id"),
    Index("ix_jobs_tenant_queue_kind_state", "tenant", "queue", "kind", "state"),  # to reconcile the tallies
    Index(
        "ix_jobs_queue_tenant_priority_id",  # whose turn it is
        "queue",
        "tenant",
        "priority",
        "id",
        sqlite_where=text("state = 'queued'"),
        postgresql_where=text("state = 'queued'"),
    ),
    Index(
        "ix_jobs_queue_queued_at",
        "queue",
        "queued_at",
        sqlite_where=text("state = 'queued'"),
        postgresql_where=text("state = 'queued'"),
    ),
    Index(
        "ix_jobs_lease_expires_at",
        "lease_expires_at",
        sqlite_where=text("lease_expires_at IS NOT NULL"),
        postgresql_where=text("lease_expires_at IS NOT NULL"),
    ),
    Index(
        "ix_jobs_artifacts_expire_at",
        "artifacts_expire_at",
        sqlite_where=text("artifacts_expire_at IS NOT NULL"),
        postgresql_where=text("artifacts_expire_at IS NOT NULL"),
    ),
    Index(
        "ix_jobs_reuse_key",
        "tenant",
        "reuse_key",
        sqlite_where=text("reuse_key IS NOT NULL"),
        postgresql_where=text("reuse_key IS NOT NULL"),
    ),
)

job_labels = Table(
    "job_labels",
    metadata,
    _job(primary_key=True),
    Column("key", NAME, primary_key=True),
    Column("value", NAME, nullable=False),
    Column("tenant", NAME, nullable=False),
    Index("ix_job_labels_tenant_key_value_job_id", "tenant", "key", "value", "job_id"),
    Index("ix_job_labels_tenant_key_job_id", "tenant", "key", "job_id"),  # whether a label is there at all
)

attempts = Table(
    "attempts",
    metadata,
    _job(primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("worker_id", NAME, nullable=False),
    Column("outcome", String(16), nullable=False),
    Column("started_at", BigInteger, nullable=False),
    Column("finished_at", BigInteger),
    Column("error_code", String(64)),
    Column("error_message", Text),
    _one_of("outcome", Outcome),
    Index("ix_attempts_finished_at", "finished_at"),  # those that run, and those of the last hour
)

attempt_logs = Table(
    "attempt_logs",
    metadata,
    _job(primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("dropped", Integer, nullable=False),  # how many lines from the start are no longer kept
    Column("text", Text, nullable=False),
)

events = Table(
    "events",
    metadata,
    _job(primary_key=True),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("time", BigInteger, nullable=False),
    Column("type", String(32), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("data", Text, nullable=False),
)

artifacts = Table(
    "artifacts",
    metadata,
    _job(primary_key=True),
    Column("name", String(160), primary_key=True),  # "*" is the archive of all the others
    Column("media_type", String(128), nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("storage", String(96), nullable=False),  # "{job}/{attempt}" in the store; shared when reused
    Column("published_at", BigInteger, nullable=False),
    Column("archive_path", String(160)),  # where it lies in the archive; NULL: under its name
    Index("ix_artifacts_storage", "storage"),
)

outbox = Table(
    "outbox",
    metadata,
    Column("id", SERIAL, primary_key=True),
    _job(),
    Column("taken_until", BigInteger, nullable=False),  # a dispatcher is busy with it until then
    Index("ix_outbox_job_id", "job_id"),
)

idempotency = Table(
    "idempotency",
    metadata,
    _tenant(primary_key=True),
    Column("key", String(255), primary_key=True),
    Column("body_hash", String(64), nullable=False),
    Column("token", ID, nullable=False),  # who is answering: fences a request that was taken over
    Column("answered", Boolean, nullable=False),
    Column("response", Text),
    Column("job_id", ID),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    Index("ix_idempotency_expires_at", "expires_at"),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", ID, primary_key=True),
    _tenant(),
    Column("name", NAME, nullable=False),
    Column("hash", String(64), nullable=False, unique=True),
    Column("hint", String(16), nullable=False),  # the last characters, to tell keys apart
    Column("scopes", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger),
    Column("revoked_at", BigInteger),
    Column("subject", Text),  # of a key that was issued for a CI system's token: whose that was
    Column("trust_id", ID, ForeignKey("trust_rules.id", ondelete="CASCADE")),  # goes with its rule
    Index("ix_api_keys_tenant_id", "tenant", "id"),
    Index("ix_api_keys_trust_id", "trust_id"),
)

trust_rules = Table(
    "trust_rules",
    metadata,
    Column("id", ID, primary_key=True),
    _tenant(),
    Column("issuer", String(512), nullable=False),
    Column("audience", String(512), nullable=False),
    Column("claims", Text, nullable=False),
    Column("scopes", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Index("ix_trust_rules_issuer", "issuer"),
)

audit = Table(
    "audit",
    metadata,
    Column("id", ID, primary_key=True),
    Column("time", BigInteger, nullable=False),
    Column("tenant", NAME, nullable=False),
    Column("key_id", ID),
    Column("subject", Text),
    Column("action", String(32), nullable=False),
    Column("object", String(128), nullable=False),
    Column("request_id", String(128)),
)

webhooks = Table(
    "webhooks",
    metadata,
    Column("id", ID, primary_key=True),
    _tenant(),
    Column("url", Text, nullable=False),
    Column("secret", String(128), nullable=False),  # signing needs it in the clear
    Column("events", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Index("ix_webhooks_tenant_id", "tenant", "id"),
)

webhook_deliveries = Table(
    "webhook_deliveries",
    metadata,
    Column("id", ID, primary_key=True),
    _tenant(),
    Column("webhook_id", ID, ForeignKey("webhooks.id", ondelete="CASCADE")),  # NULL: the job's own URL
    _job(),
    Column("url", Text, nullable=False),
    Column("event_type", String(64), nullable=False),
    Column("payload", Text, nullable=False),
    Column("state", String(16), nullable=False),  # pending, delivered, failed
    Column("tries", Integer, nullable=False),
    Column("next_try_at", BigInteger),  # NULL unless pending
    Column("last_status", Integer),
    Column("last_error", Text),
    Column("created_at", BigInteger, nullable=False),
    Column("delivered_at", BigInteger),
    CheckConstraint("state IN ('pending', 'delivered', 'failed')", name="state"),
    Index("ix_webhook_deliveries_webhook_id_id", "webhook_id", "id"),
    Index("ix_webhook_deliveries_job_id", "job_id"),
    Index(
        "ix_webhook_deliveries_next_try_at",
        "next_try_at",
        sqlite_where=text("next_try_at IS NOT NULL"),
        postgresql_where=text("next_try_at IS NOT NULL"),
    ),
)

workers = Table(
    "workers",
    metadata,
    Column("id", NAME, primary_key=True),
    Column("queues", Text, nullable=False),
    Column("devices", Text, nullable=False),
    Column("models", Text, nullable=False),
    Column("files", Text, nullable=False),  # names of its calibration files and suites
    Column("suites", Text, nullable=False, server_default=text("'{}'")),  # what its suite files hold
    Column("allow_hub", Boolean, nullable=False),
    Column("memory_bytes", BigInteger),  # NULL: it did not say
    Column("code_version", String(64), nullable=False),
    Column("draining", Boolean, nullable=False),
    Column("stalled", Boolean, nullable=False, server_default=false()),  # jobs wait, and it takes none
    Column("started_at", BigInteger, nullable=False),
    Column("seen_at", BigInteger, nullable=False),
    Index("ix_workers_seen_at", "seen_at"),
)

# The bytes of a file are a blob: parts in the artifact store, `{blob}/{number}`, that cover it without
# overlap. Several uploads of one tenant may refer to a blob whose hash was verified.
blobs = Table(
    "blobs",
    metadata,
    Column("id", ID, primary_key=True),
    _tenant(),
    Column("size", BigInteger, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("verified", Boolean, nullable=False),
    Column("last_part", Integer, nullable=False),  # numbers are handed out once: they name folders
    Column("created_at", BigInteger, nullable=False),
    Index("ix_blobs_tenant_sha256", "tenant", "sha256"),
)

blob_parts = Table(
    "blob_parts",
    metadata,
    Column("blob_id", ID, ForeignKey("blobs.id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("first", BigInteger, nullable=False),  # the place of its first byte in the file
    Column("size", BigInteger, nullable=False),
)

uploads = Table(
    "uploads",
    metadata,
    Column("id", ID, primary_key=True),
    _tenant(),
    Column("kind", String(16), nullable=False),
    Column("name", NAME, nullable=False),
    Column("state", String(16), nullable=False),
    Column("facts", Text),  # the header reader's, of a complete model
    Column("created_at", BigInteger, nullable=False),
    Column("completed_at", BigInteger),
    Column("expires_at", BigInteger, nullable=False),
    CheckConstraint("state IN ('open', 'complete')", name="state"),
    Index("ix_uploads_tenant_id", "tenant", "id"),
    Index("ix_uploads_expires_at", "expires_at"),
)

upload_files = Table(
    "upload_files",
    metadata,
    Column("upload_id", ID, ForeignKey("uploads.id", ondelete="CASCADE"), primary_key=True),
    Column("name", NAME, primary_key=True),
    Column("blob_id", ID, ForeignKey("blobs.id"), nullable=False),
    Index("ix_upload_files_blob_id", "blob_id"),
)
