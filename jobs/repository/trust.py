"""Trust rules, and the short-lived keys that are issued by them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import delete, insert, select

from jobs import tables as t
from jobs.access.trust import TrustRule
from jobs.database import now_ms
from jobs.errors import NotFoundError
from jobs.ids import is_id, is_text, new_id
from jobs.repository.keys import KeyVerbs, key_from_row
from jobs.rows import ApiKey, to_json


class TrustVerbs(KeyVerbs):
    """Whose tokens are exchanged."""

    def create_trust(
        self, tenant: str, *, issuer: str, audience: str, claims: Mapping[str, Any], scopes: Sequence[str]
    ) -> TrustRule:
        """Store a rule that `jobs.access.trust.check_rule` has let pass; makes the tenant if need be."""
        values = {
            "id": new_id(),
            "tenant": tenant,
            "issuer": issuer,
            "audience": audience,
            "claims": to_json(claims),
            "scopes": to_json(sorted(set(scopes))),
            "created_at": now_ms(),
        }
        with self._write() as connection:
            self._ensure_tenant(connection, tenant)
            statement = insert(t.trust_rules).values(**values).returning(t.trust_rules)
            rule = _rule(connection.execute(statement).mappings().one())
            self._audit(connection, "trust.create", tenant, rule.id)
        return rule

    def list_trust(self, *, issuer: str | None = None) -> list[TrustRule]:
        """All rules, or those of one issuer, the newest first."""
        query = select(t.trust_rules).order_by(t.trust_rules.c.id.desc())
        if issuer is not None:
            if not is_text(issuer):
                return []
            query = query.where(t.trust_rules.c.issuer == issuer)
        with self._read() as connection:
            return [_rule(row) for row in connection.execute(query).mappings()]

    def delete_trust(self, rule_id: str) -> None:
        """The rule goes, and every key that was issued by it; NotFoundError if there is none."""
        c = t.trust_rules.c
        gone = delete(t.trust_rules).where(c.id == rule_id).returning(c.tenant)
        if not is_id(rule_id):
            raise NotFoundError("no such trust rule", code="trust_not_found")
        with self._write() as connection:
            tenant = connection.execute(gone).scalar_one_or_none()
            if tenant is None:
                raise NotFoundError("no such trust rule", code="trust_not_found")
            self._audit(connection, "trust.delete", tenant, rule_id)

    def issue_token(
        self,
        rule: TrustRule,
        *,
        key_hash: str,
        hint: str,
        scopes: Sequence[str],
        subject: str,
        expires_at: int,
    ) -> ApiKey:
        """Store the key that a token was exchanged for; NotFoundError if the rule was deleted meanwhile.

        Race: the rule's row is locked, so that it is deleted either before this (which then fails) or
        after, together with the key.
        """
        values = {
            "id": new_id(),
            "tenant": rule.tenant,
            "name": "",
            "hash": key_hash,
            "hint": hint,
            "scopes": to_json(sorted(set(scopes))),
            "created_at": now_ms(),
            "expires_at": expires_at,
            "subject": subject,
            "trust_id": rule.id,
        }
        held = select(t.trust_rules.c.id).where(t.trust_rules.c.id == rule.id).with_for_update(read=True)
        with self._write() as connection:
            if connection.execute(held).first() is None:
                raise NotFoundError("no such trust rule", code="trust_not_found")
            statement = insert(t.api_keys).values(**values).returning(t.api_keys)
            key = key_from_row(connection.execute(statement).mappings().one())
            self._audit(connection, "token.issue", rule.tenant, rule.id)
        return key

    def purge_tokens(self) -> int:
        """Forget issued keys whose time has passed; returns how many. The audit keeps what they did."""
        c = t.api_keys.c
        with self._write() as connection:
            old = delete(t.api_keys).where(c.trust_id.is_not(None), c.expires_at <= now_ms())
            return connection.execute(old).rowcount


def _rule(row: Mapping[Any, Any]) -> TrustRule:
    values = dict(row)
    claims, scopes = json.loads(values.pop("claims")), json.loads(values.pop("scopes"))
    return TrustRule(claims=claims, scopes=frozenset(scopes), **values)
