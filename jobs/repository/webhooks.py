"""Webhooks and their deliveries: a table that works as a queue."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Select, and_, delete, func, insert, select, update

from jobs import tables as t
from jobs.database import now_ms
from jobs.errors import NotFoundError
from jobs.ids import is_id, new_id
from jobs.repository.base import Verbs, later
from jobs.repository.whole.totals import note_of
from jobs.rows import Delivery, Webhook, printable, to_json
from jobs.signing.secret import new_webhook_secret
from jobs.webhooks import BACKOFF_SECONDS


class WebhookVerbs(Verbs):
    """Who wants to be told, and what is still to be told."""

    def create_webhook(self, tenant: str, url: str, events: Sequence[str] = ()) -> Webhook:
        """A standing wish; no events means all. Its secret is shown in what this returns."""
        values = {
            "id": new_id(),
            "tenant": tenant,
            "url": url,
            "secret": new_webhook_secret(),
            "events": to_json(list(events)),
            "created_at": now_ms(),
        }
        statement = insert(t.webhooks).values(**values).returning(t.webhooks)
        with self._write() as connection:
            webhook = _webhook(connection.execute(statement).mappings().one())
            self._audit(connection, "webhook.create", tenant, webhook.id)
        return webhook

    def list_webhooks(self, tenant: str) -> list[Webhook]:
        """A tenant's webhooks, the newest first."""
        query = select(t.webhooks).where(t.webhooks.c.tenant == tenant).order_by(t.webhooks.c.id.desc())
        with self._read() as connection:
            return [_webhook(row) for row in connection.execute(query).mappings()]

    def get_webhook(self, webhook_id: str, tenant: str) -> Webhook:
        """NotFoundError if there is none, or if it is another tenant's."""
        query = select(t.webhooks).where(t.webhooks.c.id == webhook_id, t.webhooks.c.tenant == tenant)
        row = None
        if is_id(webhook_id):
            with self._read() as connection:
                row = connection.execute(query).mappings().first()
        if row is None:
            raise NotFoundError("no such webhook", code="webhook_not_found")
        return _webhook(row)

    def delete_webhook(self, webhook_id: str, tenant: str) -> None:
        """The webhook and its deliveries go; NotFoundError if there is none."""
        self.get_webhook(webhook_id, tenant)
        c = t.webhooks.c
        with self._write() as connection:
            gone = connection.execute(delete(t.webhooks).where(c.id == webhook_id, c.tenant == tenant))
            if gone.rowcount == 0:
                raise NotFoundError("no such webhook", code="webhook_not_found")
            self._audit(connection, "webhook.delete", tenant, webhook_id)

    def list_deliveries(self, webhook_id: str, tenant: str, *, limit: int = 100) -> list[Delivery]:
        """A webhook's messages, the newest first; NotFoundError for another tenant's webhook."""
        self.get_webhook(webhook_id, tenant)
        c = t.webhook_deliveries.c
        query = _with_secret().where(c.webhook_id == webhook_id).order_by(c.id.desc()).limit(limit)
        with self._read() as connection:
            return [_delivery(row) for row in connection.execute(query).mappings()]

    def redeliver(self, webhook_id: str, tenant: str, delivery_id: str | None = None) -> int:
        """Send again: one delivery, or (None) all of the webhook that failed. Returns how many.

        NotFoundError if the webhook or the delivery does not exist. One that is pending already stays so.
        """
        self.get_webhook(webhook_id, tenant)
        if delivery_id is not None and not is_id(delivery_id):
            raise NotFoundError("no such delivery", code="delivery_not_found")
        c = t.webhook_deliveries.c
        which = [c.state == "failed"] if delivery_id is None else [c.id == delivery_id]
        statement = (
            update(t.webhook_deliveries)
            .where(c.webhook_id == webhook_id, *which)
            .values(state="pending", tries=0, next_try_at=now_ms(), delivered_at=None)
        )
        with self._write() as connection:
            changed = connection.execute(statement).rowcount
        if changed == 0 and delivery_id is not None:
            raise NotFoundError("no such delivery", code="delivery_not_found")
        return changed

    def take_deliveries(self, *, limit: int = 20, lease_seconds: float = 60) -> list[Delivery]:
        """Messages that are due, reserved for this caller (SKIP LOCKED on Postgres).

        Send each, then mark_delivered or mark_undelivered. If the caller dies they come up again after the
        lease: a receiver may get a message twice, with the same id.
        """
        c = t.webhook_deliveries.c
        due = (
            select(c.id)
            .where(c.next_try_at <= now_ms())
            .order_by(c.next_try_at)
            .limit(limit)
            .with_for_update(skip_locked=self._skip_locked)
        )
        with self._write() as connection:
            ids = list(connection.execute(due).scalars())
            reserve = update(t.webhook_deliveries).where(c.id.in_(ids))
            connection.execute(reserve.values(next_try_at=later(lease_seconds), tries=c.tries + 1))
            return [
                _delivery(row) for row in connection.execute(_with_secret().where(c.id.in_(ids))).mappings()
            ]

    def deliveries_waiting(self) -> bool:
        """Whether any message is due, without taking it or the write lock."""
        c = t.webhook_deliveries.c
        with self._read() as connection:
            return (
                connection.execute(select(c.id).where(c.next_try_at <= now_ms()).limit(1)).first() is not None
            )

    def mark_delivered(self, delivery_id: str, status: int) -> None:
        """The receiver answered 2xx. Repeats are safe."""
        self._note(
            "delivered", delivery_id, status, None, state="delivered", next_try_at=None, delivered_at=now_ms()
        )

    def mark_undelivered(self, delivery_id: str, status: int | None, error: str) -> None:
        """A try failed: the next one comes after the backoff, or the delivery has failed for good."""
        c = t.webhook_deliveries.c
        with self._read() as connection:
            query = select(c.tries).where(c.id == delivery_id)
            tries = connection.execute(query).scalar_one_or_none() or 0
        if tries > len(BACKOFF_SECONDS):
            self._note("failed", delivery_id, status, error, state="failed", next_try_at=None)
        else:
            again = later(BACKOFF_SECONDS[max(tries, 1) - 1])
            self._note("retried", delivery_id, status, error, next_try_at=again)

    def _note(
        self, outcome: str, delivery_id: str, status: int | None, error: str | None, **values: Any
    ) -> None:
        c = t.webhook_deliveries.c
        statement = (
            update(t.webhook_deliveries)
            .where(c.id == delivery_id, c.state == "pending")
            .values(last_status=status, last_error=None if error is None else printable(error), **values)
            .returning(c.tenant)
        )
        with self._write() as connection:
            tenant = connection.execute(statement).scalar_one_or_none()
            if tenant is not None:
                note_of(connection, "webhook", tenant, outcome)


def _with_secret() -> Select[Any]:
    """Deliveries with the secret that signs them: the webhook's, or the tenant's for a job's own URL."""
    d = t.webhook_deliveries
    return (
        select(d, func.coalesce(t.webhooks.c.secret, t.tenants.c.webhook_secret).label("secret"))
        .join(t.tenants, t.tenants.c.name == d.c.tenant)
        .outerjoin(t.webhooks, and_(t.webhooks.c.id == d.c.webhook_id))
    )


def _webhook(row: Mapping[Any, Any]) -> Webhook:
    return Webhook(**{**row, "events": json.loads(row["events"])})


def _delivery(row: Mapping[Any, Any]) -> Delivery:
    return Delivery(**row)
