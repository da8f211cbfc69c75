"""The one door to the database: one verb per question or transition. Synchronous; safe to share by threads.

Signatures first; the bodies arrive within minutes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from sqlalchemy import Engine

from jobs.rows import (
    ApiKey,
    Artifact,
    Attempt,
    Check,
    Claim,
    Delivery,
    Event,
    Idempotency,
    Job,
    JsonObject,
    LocalModel,
    OutboxEntry,
    Page,
    Progress,
    Version,
    Webhook,
    Worker,
)
from jobs.settings import Settings
from jobs.specs import AnyRequest
from jobs.states import State


class Repository:
    """All verbs. `Repository(engine, settings)`; every method opens and closes its own transaction."""

    def __init__(self, engine: Engine, settings: Settings) -> None: ...

    # --- creating (API) ---
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
    ) -> Job:
        """Job + labels + `queued` event + outbox row in one transaction; quotas are checked in it.

        With `request.reuse` and a `reuse_key` that a succeeded job of the tenant (whose artifacts are still
        kept) has, the new job is born `succeeded` with that job's artifacts (`reused_from`), nothing is queued.
        With `idempotency`, `render(job)` becomes the stored first answer in the same transaction.
        Raises QuotaExceededError, QueueFullError, ConflictError (the idempotency token was taken over).
        """
        raise NotImplementedError

    def begin_idempotent(self, tenant: str, key: str, body: object) -> Idempotency:
        """Claims `key` for this parsed JSON body: `.token` set = go on (then create_job or abandon);
        `.response` set = the first answer again. IdempotencyMismatchError (422), IdempotencyInFlightError (409).
        """
        raise NotImplementedError

    def abandon_idempotent(self, tenant: str, key: str, token: str) -> None:
        """The request was refused: the key is free again."""

    # --- reading (API); tenant=None means any tenant (admin) ---
    def get_job(self, job_id: str, tenant: str | None = None) -> Job:
        """NotFoundError if there is none or it is another tenant's."""
        raise NotImplementedError

    def list_jobs(
        self,
        tenant: str | None,
        *,
        state: State | None = None,
        kind: str | None = None,
        labels: Mapping[str, str] | None = None,
        created_after: int | None = None,
        cursor: str | None = None,
        limit: int = 50,
    ) -> Page:
        """Newest first, keyset by id (the cursor is the last id seen; InvalidError code cursor_invalid)."""
        raise NotImplementedError

    def versions(self, job_ids: Sequence[str]) -> dict[str, Version]:
        """version/last_seq/terminal of many jobs in ONE query: what the notifier of waits and SSE polls."""
        raise NotImplementedError

    def list_events(self, job_id: str, *, after: int = 0, limit: int = 1000) -> list[Event]: ...  # type: ignore
    def list_attempts(self, job_id: str) -> list[Attempt]: ...  # type: ignore
    def list_artifacts(self, job_id: str) -> list[Artifact]:  # sorted by name, without "*"
        raise NotImplementedError

    def get_artifact(self, job_id: str, name: str) -> Artifact | None:
        """One artifact; name "*" = the archive row (size and sha256 of the tar)."""
        raise NotImplementedError

    def get_metrics(self, job_id: str) -> JsonObject | None: ...
    def get_checks(self, job_id: str) -> list[Check]: ...  # type: ignore

    # --- user's transitions (API) ---
    def cancel_job(self, job_id: str) -> Job:
        """queued → cancelled, running → cancelling; repeat-safe while cancelling/cancelled; else ConflictError."""
        raise NotImplementedError

    def retry_job(self, job_id: str) -> Job:
        """failed/timed_out/cancelled/expired → queued, lost_attempts = 0; else ConflictError."""
        raise NotImplementedError

    def delete_job(self, job_id: str) -> None:
        """Ended jobs only (ConflictError); files go by `unreferenced_storage` + ArtifactStore, or by purge."""

    # --- attempts (WORKER) ---
    def claim(self, job_id: str, worker_id: str) -> Claim | None:
        """queued → running with a new attempt number and a lease; None: nothing to do with this message."""
        raise NotImplementedError

    def heartbeat(self, job_id: str, attempt: int) -> State | None:
        """Extends the lease. State.RUNNING, State.CANCELLING (stop, then mark_cancelled), None (replaced: stop)."""
        raise NotImplementedError

    def add_event(
        self, job_id: str, attempt: int, type: str, data: JsonObject, *, progress: Progress | None = None
    ) -> bool:
        """Appends an event (and sets the progress). False: the attempt has been replaced, nothing written."""
        raise NotImplementedError

    def mark_succeeded(
        self,
        job_id: str,
        attempt: int,
        *,
        artifacts: Sequence[Artifact],
        archive: Artifact | None,
        metrics: JsonObject,
        publish: Callable[[], None],
    ) -> State | None:
        """running → succeeded. `publish` (ArtifactStore.publish: the rename) runs inside the transaction, after
        the fenced UPDATE. The verdict is computed here from the job's gates and `metrics`.
        Returns State.SUCCEEDED; State.CANCELLED when the job was cancelling (result discarded); None if replaced.
        """
        raise NotImplementedError

    def mark_failed(self, job_id: str, attempt: int, code: str, message: str) -> State | None:
        """running → failed (a user's error: never tried again); cancelling → cancelled; None if replaced."""
        raise NotImplementedError

    def mark_timed_out(self, job_id: str, attempt: int, message: str) -> State | None:
        """running → timed_out; cancelling → cancelled; None if replaced."""
        raise NotImplementedError

    def mark_cancelled(self, job_id: str, attempt: int) -> State | None:
        """cancelling → cancelled; None if replaced or not asked for."""
        raise NotImplementedError

    def mark_lost(self, job_id: str, attempt: int, code: str, message: str) -> State | None:
        """An infrastructure failure (engine killed, out of memory): counts; → queued, or failed with
        attempts_exhausted; cancelling → cancelled. Returns the job's new state, None if replaced."""
        raise NotImplementedError

    def release_preempted(self, job_id: str, attempt: int) -> State | None:
        """Shutdown: running → queued without counting; cancelling → cancelled; None if replaced."""
        raise NotImplementedError

    # --- background loops (API process; safe to run several times) ---
    def sweep_expired(self, *, limit: int = 100) -> list[Job]:
        """Lost leases, queue deadlines, forgotten queued jobs (outbox again). Returns the jobs it changed."""
        raise NotImplementedError

    def take_outbox(self, *, limit: int = 100) -> list[OutboxEntry]:
        """Due messages, reserved for 10 s (SKIP LOCKED on Postgres)."""
        raise NotImplementedError

    def mark_published(self, entries: Sequence[OutboxEntry]) -> None:
        """The messages went out: their outbox rows go."""

    def take_expired_artifacts(self, *, limit: int = 20) -> list[str]:
        """Ended jobs past artifacts_expire_at: rows go; returns storage prefixes that nothing refers to now."""
        raise NotImplementedError

    def live_storage(self, prefixes: Sequence[tuple[str, int]]) -> set[tuple[str, int]]:
        """Which (job, attempt) folders are published or held by a running attempt: the rest are orphans."""
        raise NotImplementedError

    # --- keys and tenants ---
    def ensure_tenant(self, tenant: str) -> None: ...
    def create_key(
        self, tenant: str, *, key_hash: str, hint: str, scopes: Sequence[str], name: str = "", expires_at: int | None = None
    ) -> ApiKey: ...  # type: ignore
    def find_key(self, key_hashes: Sequence[str]) -> ApiKey | None:
        """The key that is neither revoked nor expired (database's clock); see jobs.keys for the hashes."""
        raise NotImplementedError

    def list_keys(self, tenant: str | None) -> list[ApiKey]: ...  # type: ignore
    def revoke_key(self, key_id: str, tenant: str | None) -> None:
        """NotFoundError if there is none; a repeat is safe."""

    # --- webhooks ---
    def create_webhook(self, tenant: str, url: str, events: Sequence[str]) -> Webhook: ...  # type: ignore
    def list_webhooks(self, tenant: str) -> list[Webhook]: ...  # type: ignore
    def delete_webhook(self, webhook_id: str, tenant: str) -> None: ...
    def list_deliveries(self, webhook_id: str, tenant: str, *, limit: int = 100) -> list[Delivery]: ...  # type: ignore
    def redeliver(self, webhook_id: str, tenant: str, delivery_id: str | None = None) -> int: ...  # type: ignore
    def take_deliveries(self, *, limit: int = 20, lease_seconds: float = 60) -> list[Delivery]: ...  # type: ignore
    def mark_delivered(self, delivery_id: str, status: int) -> None: ...
    def mark_undelivered(self, delivery_id: str, status: int | None, error: str) -> None:
        """Schedules the next try with backoff, or gives up after the last."""

    # --- workers ---
    def worker_beat(
        self,
        worker_id: str,
        *,
        queues: Sequence[str],
        devices: Sequence[str],
        models: Sequence[LocalModel],
        files: Mapping[str, Sequence[str]],
        allow_hub: bool,
        code_version: str,
        draining: bool = False,
    ) -> None:
        """Upsert of the worker's row. `files`: {"calibration": […], "suites": […]} names of local files."""

    def worker_gone(self, worker_id: str) -> None: ...
    def live_workers(self) -> list[Worker]:
        """Workers that beat within worker_timeout_seconds and are not draining."""
        raise NotImplementedError

    def list_models(self) -> list[LocalModel]:
        """The local models of all live workers, by name (a revision that differs between workers: see admission)."""
        raise NotImplementedError

    # --- numbers for /metrics and /readyz ---
    def count_states(self) -> dict[tuple[str, str], int]:
        """(state, kind) → number of jobs."""
        raise NotImplementedError

    def queue_age_seconds(self) -> dict[str, float]: ...  # type: ignore
    def ping(self) -> None:
        """Raises sqlalchemy's error when the database does not answer."""
