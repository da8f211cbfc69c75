"""The record of every write: who did what to which thing, when, and by which request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Action = Literal[
    "job.create",
    "job.cancel",
    "job.retry",
    "job.delete",
    "key.create",
    "key.revoke",
    "tenant.update",
    "trust.create",
    "trust.delete",
    "upload.create",
    "upload.complete",
    "upload.delete",
    "webhook.create",
    "webhook.delete",
    "token.issue",
]


@dataclass(frozen=True)
class Actor:
    """Who acts: the id of a key, or the subject of a CI system's token or of a command."""

    key_id: str | None = None
    subject: str | None = None

    def as_json(self) -> dict[str, str]:
        """`{"subject": …}` where there is one, otherwise `{"key_id": …}`."""
        if self.subject is not None:
            return {"subject": self.subject}
        return {"key_id": self.key_id or ""}


COMMAND_LINE = Actor(subject="command line")
"""Whoever may run commands beside the service."""


@dataclass(frozen=True)
class Act:
    """On whose behalf a write is made, and by which request."""

    actor: Actor
    request_id: str | None = None


@dataclass(frozen=True)
class AuditEntry:
    """One write."""

    id: str
    time: int
    tenant: str
    actor: Actor
    action: str
    object: str
    request_id: str | None


@dataclass(frozen=True)
class AuditPage:
    """Entries, the newest first; `next_cursor` is None on the last page."""

    items: list[AuditEntry]
    next_cursor: str | None
