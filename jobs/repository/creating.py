"""The birth of a job: quotas, the row with its outbox message, reuse of an earlier result, idempotency."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import Connection, RowMapping, delete, insert, select, update

from jobs import tables as t
from jobs.database import now_ms
from jobs.errors import (
    ConflictError,
    IdempotencyInFlightError,
    IdempotencyMismatchError,
)
from jobs.ids import new_id
from jobs.repository.base import JOB_COLUMNS, Verbs, event_row, is_in, later, put_into_outbox
from jobs.repository.ending import artifact_row, finish
from jobs.rows import ARTIFACT_FIELDS, Artifact, Idempotency, Job, JsonObject, job_from_row, to_json
from jobs.specs import AnyRequest, Spec, spec_to_json
from jobs.specs.resolved import resolved
from jobs.states import State

IN_FLIGHT_SECONDS = 60
"""A request that has not been answered for this long died on the way; another may take its key over."""
REUSE_MARGIN_SECONDS = 3600
"""A result is reused only if it stays at least this long."""


class CreatingVerbs(Verbs):
    """How jobs come into being."""

    def create_job(
        self,
        tenant: str,
        request: AnyRequest,
        *,
        queue: str,
        reuse_key: str | None = None,
        idempotency: Idempotency | None = None,
        render: Callable[[Job], str] | None = None,
        request_id: str | None = None,
        traceparent: str | None = None,
        warnings: Sequence[JsonObject] = (),
        output_bytes: int = 0,
    ) -> Job:
        """Job, labels, `queued` event and outbox message in one transaction; quotas are checked in it.

        With `request.reuse`, and a succeeded job of the same tenant and `reuse_key` whose artifacts are
        kept, the new job is born `succeeded` with that job's artifacts (`reused_from`) and nothing is queued.
        With `idempotency` (from begin_idempotent), `render(job)` is stored as the first answer in the
        same transaction, so that a job and the memory of its request exist together or not at all.
        `output_bytes` is what it is expected to write, and `warnings` are what admission said of it.
        Raises QuotaExceededError, ArtifactQuotaError, QueueFullError, and ConflictError if the idempotency
        key was taken over.
        """
        with self._write() as connection:
            source = self._reusable(connection, tenant, reuse_key) if request.reuse else None
            values = self._new_row(request, tenant=tenant, queue=queue)
            values |= {"reuse_key": reuse_key, "request_id": request_id, "traceparent": traceparent}
            values["warnings"] = to_json(list(warnings)) if warnings else None
            job = _insert_job(connection, values)
            if source is None:
                self._check_quotas(connection, tenant, output_bytes)
                put_into_outbox(connection, job.id)
            else:
                job = self._born_succeeded(connection, job, source)
            self._audit(connection, "job.create", tenant, job.id)
            if idempotency is not None and idempotency.token is not None:
                _answer(connection, tenant, idempotency.token, job, render)
        return job

    def begin_idempotent(self, tenant: str, key: str, body: object) -> Idempotency:
        """Take an Idempotency-Key for this parsed JSON body, or get the first answer again.

        `.token` set: go on, then create_job (which stores the answer) or abandon_idempotent. `.response`
        set: the first answer. Raises IdempotencyMismatchError for another body, IdempotencyInFlightError
        while the first request is being answered. Race: the primary key lets one of two requests win.
        """
        digest = body_hash(body)
        token = new_id()
        with self._write() as connection:
            connection.execute(delete(t.idempotency).where(*_expired_key(tenant, key)))
            if self._take_key(connection, tenant, key, digest, token):
                return Idempotency(token=token, response=None, job_id=None)
            row = (
                connection.execute(
                    select(t.idempotency).where(t.idempotency.c.tenant == tenant, t.idempotency.c.key == key)
                )
                .mappings()
                .one()
            )
            if row["body_hash"] != digest:
                raise IdempotencyMismatchError("this Idempotency-Key was used with another body")
            if not row["answered"]:
                return _take_over(connection, row, token)
            return Idempotency(token=None, response=row["response"], job_id=row["job_id"])

    def abandon_idempotent(self, tenant: str, token: str) -> None:
        """The request was refused, so its key is free again. Repeats are safe."""
        with self._write() as connection:
            connection.execute(
                delete(t.idempotency).where(
                    t.idempotency.c.tenant == tenant,
                    t.idempotency.c.token == token,
                    t.idempotency.c.answered.is_(False),
                )
            )

    def purge_idempotency(self) -> int:
        """Forget the answers whose time has passed; returns how many."""
        with self._write() as connection:
            gone = connection.execute(delete(t.idempotency).where(t.idempotency.c.expires_at <= now_ms()))
        return gone.rowcount

    def _take_key(self, connection: Connection, tenant: str, key: str, digest: str, token: str) -> bool:
        statement = self._insert(t.idempotency).values(
            tenant=tenant,
            key=key,
            body_hash=digest,
            token=token,
            answered=False,
            created_at=now_ms(),
            expires_at=later(self.settings.idempotency_seconds),
        )
        result = connection.execute(statement.on_conflict_do_nothing().returning(t.idempotency.c.token))
        return result.first() is not None

    def _new_row(self, request: AnyRequest, *, tenant: str, queue: str) -> dict[str, Any]:
        deadline = request.queue_timeout_seconds
        return {
            "id": new_id(),
            "tenant": tenant,
            "kind": request.kind,
            "spec": to_json(spec_to_json(request.spec)),
            "resolved": _resolved(request.spec),
            "labels": to_json(request.labels),
            "gates": to_json([gate.model_dump(mode="json") for gate in request.gates]),
            "priority": request.priority,
            "queue": queue,
            "timeout_seconds": request.timeout_seconds or self.settings.default_timeout_seconds,
            "queue_deadline": None if deadline is None else later(deadline),
            "webhook_url": request.webhook_url,
            "state": State.QUEUED.value,
            "version": 1,
            "last_seq": 1,
            "attempt": 0,
            "lost_attempts": 0,
            "max_attempts": self.settings.max_attempts,
            "created_by": None if self._act is None else to_json(self._act.actor.as_json()),
            "publish_count": 0,
            "created_at": now_ms(),
            "queued_at": now_ms(),
        }

    def _reusable(self, connection: Connection, tenant: str, reuse_key: str | None) -> RowMapping | None:
        if reuse_key is None:
            return None
        # FOR SHARE: the source can be neither deleted nor purged before the new job refers to its files.
        return (
            connection.execute(
                select(t.jobs.c.id, t.jobs.c.metrics, t.jobs.c.artifacts_expire_at)
                .where(
                    t.jobs.c.tenant == tenant,
                    t.jobs.c.reuse_key == reuse_key,
                    is_in(State.SUCCEEDED),
                    t.jobs.c.artifacts_expire_at > later(REUSE_MARGIN_SECONDS),
                )
                .order_by(t.jobs.c.id.desc())
                .limit(1)
                .with_for_update(read=True)
            )
            .mappings()
            .first()
        )

    def _born_succeeded(self, connection: Connection, job: Job, source: RowMapping) -> Job:
        ended = finish(
            connection,
            (t.jobs.c.id == job.id,),
            State.SUCCEEDED,
            retention_seconds=self.settings.retention_seconds,
            metrics=json.loads(source["metrics"]),
            reused_from=source["id"],
            started_at=now_ms(),
            progress_fraction=1.0,
        )
        if ended is None:
            raise ConflictError("the new job vanished")  # it was inserted in this very transaction
        rows = connection.execute(select(t.artifacts).where(t.artifacts.c.job_id == source["id"])).mappings()
        copies = [artifact_row(ended, _shared(row)) for row in rows]
        if copies:
            connection.execute(insert(t.artifacts), copies)
        return ended


def _resolved(spec: Spec) -> str | None:
    """What will be carried out, where that says more than the spec itself."""
    found = resolved(spec)
    return None if found == spec_to_json(spec) else to_json(found)


def body_hash(body: object) -> str:
    """SHA-256 of parsed JSON, whatever the order of its fields."""
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _shared(row: RowMapping) -> Artifact:
    return Artifact(**{name: row[name] for name in ARTIFACT_FIELDS})


def _insert_job(connection: Connection, values: dict[str, Any]) -> Job:
    row = connection.execute(insert(t.jobs).values(**values).returning(*JOB_COLUMNS)).one()
    job = job_from_row(row)
    connection.execute(event_row(job, "queued", {}))
    if job.labels:
        labels = [
            {"job_id": job.id, "key": key, "value": value, "tenant": job.tenant}
            for key, value in job.labels.items()
        ]
        connection.execute(insert(t.job_labels), labels)
    return job


def _answer(
    connection: Connection, tenant: str, token: str, job: Job, render: Callable[[Job], str] | None
) -> None:
    response = None if render is None else render(job)
    statement = (
        update(t.idempotency)
        .where(t.idempotency.c.tenant == tenant, t.idempotency.c.token == token)
        .values(answered=True, response=response, job_id=job.id)
    )
    if connection.execute(statement).rowcount != 1:
        raise ConflictError("another request has taken over this Idempotency-Key")


def _expired_key(tenant: str, key: str) -> tuple[Any, ...]:
    c = t.idempotency.c
    return (c.tenant == tenant, c.key == key, c.expires_at <= now_ms())


def _take_over(connection: Connection, row: RowMapping, token: str) -> Idempotency:
    c = t.idempotency.c
    statement = (
        update(t.idempotency)
        .where(
            c.tenant == row["tenant"],
            c.key == row["key"],
            c.token == row["token"],
            c.answered.is_(False),
            c.created_at <= later(-IN_FLIGHT_SECONDS),
        )
        .values(token=token, created_at=now_ms())
    )
    if connection.execute(statement).rowcount != 1:
        raise IdempotencyInFlightError("the first request with this Idempotency-Key is being answered")
    return Idempotency(token=token, response=None, job_id=None)
