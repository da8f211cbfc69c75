"""Tenants and API keys. A key itself is never stored, only its HMAC (see jobs.signing.keys)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, func, insert, or_, select, update

from jobs import tables as t
from jobs.database import now_ms
from jobs.errors import InvalidError, NotFoundError
from jobs.ids import is_id, is_text, new_id
from jobs.repository.base import Verbs
from jobs.rows import ApiKey, to_json
from jobs.signing.secret import new_webhook_secret


class KeyVerbs(Verbs):
    """Who may come in."""

    def ensure_tenant(self, tenant: str) -> None:
        """Make the tenant if there is none of this name. Repeats are safe."""
        with self._write() as connection:
            self._ensure_tenant(connection, tenant)

    def webhook_secret(self, tenant: str) -> str:
        """What signs the messages to the `webhook_url` of this tenant's jobs."""
        query = select(t.tenants.c.webhook_secret).where(t.tenants.c.name == tenant)
        with self._read() as connection:
            secret: str | None = connection.execute(query).scalar_one_or_none()
        if secret is None:
            raise NotFoundError("no such tenant", code="tenant_not_found")
        return secret

    def create_key(
        self,
        tenant: str,
        *,
        key_hash: str,
        hint: str,
        scopes: Sequence[str],
        name: str = "",
        expires_at: int | None = None,
    ) -> ApiKey:
        """Store a new key's HMAC; makes the tenant if need be. InvalidError for unprintable names."""
        if not is_text(tenant) or not is_text(name):
            raise InvalidError("a name holds a character that cannot be printed", location=("name",))
        values = {
            "id": new_id(),
            "tenant": tenant,
            "name": name,
            "hash": key_hash,
            "hint": hint,
            "scopes": to_json(sorted(set(scopes))),
            "created_at": now_ms(),
            "expires_at": expires_at,
        }
        with self._write() as connection:
            self._ensure_tenant(connection, tenant)
            row = (
                connection.execute(insert(t.api_keys).values(**values).returning(t.api_keys)).mappings().one()
            )
            self._audit(connection, "key.create", tenant, row["id"])
        return key_from_row(row)

    def find_key(self, key_hashes: Sequence[str]) -> ApiKey | None:
        """The key with one of these HMACs (one a live secret), unless it is revoked or has expired."""
        c = t.api_keys.c
        query = select(t.api_keys).where(
            c.hash.in_(key_hashes),
            c.revoked_at.is_(None),
            or_(c.expires_at.is_(None), c.expires_at > now_ms()),
        )
        with self._read() as connection:
            row = connection.execute(query).mappings().first()
        return None if row is None else key_from_row(row)

    def list_keys(self, tenant: str | None) -> list[ApiKey]:
        """A tenant's keys (None: all), the newest first, the revoked ones included, issued tokens not."""
        query = select(t.api_keys).where(t.api_keys.c.trust_id.is_(None)).order_by(t.api_keys.c.id.desc())
        if tenant is not None:
            query = query.where(t.api_keys.c.tenant == tenant)
        with self._read() as connection:
            return [key_from_row(row) for row in connection.execute(query).mappings()]

    def revoke_key(self, key_id: str, tenant: str | None) -> None:
        """The key opens nothing from now on. NotFoundError if there is none; repeats are safe."""
        c = t.api_keys.c
        where = [c.id == key_id] if tenant is None else [c.id == key_id, c.tenant == tenant]
        statement = update(t.api_keys).where(*where).values(revoked_at=func.coalesce(c.revoked_at, now_ms()))
        if not is_id(key_id):
            raise NotFoundError("no such key", code="key_not_found")
        with self._write() as connection:
            owner = connection.execute(statement.returning(c.tenant)).scalar_one_or_none()
            if owner is None:
                raise NotFoundError("no such key", code="key_not_found")
            self._audit(connection, "key.revoke", owner, key_id)

    def _ensure_tenant(self, connection: Connection, tenant: str) -> None:
        values = {"name": tenant, "webhook_secret": new_webhook_secret(), "created_at": now_ms()}
        statement = self._insert(t.tenants).values(**values)
        connection.execute(statement.on_conflict_do_nothing())


def key_from_row(row: Mapping[Any, Any]) -> ApiKey:
    """A row of `api_keys` without the HMAC."""
    names = ("id", "tenant", "name", "hint", "created_at", "expires_at", "revoked_at", "subject")
    return ApiKey(scopes=frozenset(json.loads(row["scopes"])), **{name: row[name] for name in names})
