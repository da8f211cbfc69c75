"""The audit: read by pages here, written by the verbs that change things, in their own transactions."""

from __future__ import annotations

from typing import Any

from sqlalchemy import RowMapping, select

from jobs import tables as t
from jobs.access.audit import Actor, AuditEntry, AuditPage
from jobs.errors import InvalidError
from jobs.ids import is_id
from jobs.repository.base import Verbs

MAX_PAGE = 100


class AuditVerbs(Verbs):
    """What was done."""

    def list_audit(self, *, cursor: str | None = None, limit: int = 50) -> AuditPage:
        """A page of the audit, newest first, by keyset; InvalidError (`cursor_invalid`) as for jobs."""
        if cursor is not None and not is_id(cursor):
            raise InvalidError("cursor: not one that a list has given", code="cursor_invalid")
        size = min(max(limit, 1), MAX_PAGE)
        query = select(t.audit).order_by(t.audit.c.id.desc()).limit(size + 1)
        if cursor is not None:
            query = query.where(t.audit.c.id < cursor)
        with self._read() as connection:
            rows = connection.execute(query).mappings().all()
        items = [_entry(row) for row in rows[:size]]
        return AuditPage(items, items[-1].id if len(rows) > size else None)


def _entry(row: RowMapping) -> AuditEntry:
    values: dict[str, Any] = dict(row)
    actor = Actor(values.pop("key_id"), values.pop("subject"))
    return AuditEntry(actor=actor, **values)
