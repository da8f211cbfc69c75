"""The tables of the database, as `from jobs import tables as t` and `t.jobs.c.state`."""

from __future__ import annotations

from jobs.tables.base import metadata
from jobs.tables.books import changes, duties, tallies, totals
from jobs.tables.records import (
    api_keys,
    artifacts,
    attempt_logs,
    attempts,
    audit,
    blob_parts,
    blobs,
    events,
    idempotency,
    job_labels,
    jobs,
    outbox,
    tenants,
    trust_rules,
    upload_files,
    uploads,
    webhook_deliveries,
    webhooks,
    workers,
)
from jobs.tables.triggers import made_with

__all__ = [
    "api_keys",
    "artifacts",
    "attempt_logs",
    "attempts",
    "audit",
    "blob_parts",
    "blobs",
    "changes",
    "duties",
    "events",
    "idempotency",
    "job_labels",
    "jobs",
    "metadata",
    "outbox",
    "tallies",
    "tenants",
    "totals",
    "trust_rules",
    "upload_files",
    "uploads",
    "webhook_deliveries",
    "webhooks",
    "workers",
]

made_with(metadata)
