"""What can go wrong with a job, as facts: a stable code and a sentence, nothing of HTTP."""

from __future__ import annotations


class JobsError(Exception):
    """A refusal with a stable `code`; the message holds no path, no secret and no stack trace."""

    code = "jobs_error"

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        if code is not None:
            self.code = code


class NotFoundError(JobsError):
    """No such thing, or it belongs to another tenant (which must look the same)."""

    code = "not_found"


class ConflictError(JobsError):
    """The state of things does not allow this now (a transition, a name that exists)."""

    code = "conflict"


class InvalidError(JobsError):
    """A request that cannot be carried out as written; `location` points into the request body."""

    code = "invalid"

    def __init__(
        self, message: str, *, code: str | None = None, location: tuple[str | int, ...] = ()
    ) -> None:
        super().__init__(message, code=code)
        self.location = location


class QuotaExceededError(JobsError):
    """One tenant has too many jobs in flight; come back after `retry_after` seconds."""

    code = "too_many_jobs"
    policy = "jobs"
    """What is limited, in the headers of HTTP."""

    def __init__(self, message: str, *, limit: int, retry_after: int) -> None:
        super().__init__(message)
        self.limit = limit
        self.retry_after = retry_after


class ArtifactQuotaError(QuotaExceededError):
    """One tenant's kept files take all that they may."""

    code = "artifact_quota_exceeded"
    policy = "artifact-bytes"


class QueueFullError(JobsError):
    """The whole queue is full; come back after `retry_after` seconds."""

    code = "queue_full"

    def __init__(self, message: str, *, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class NoWorkerError(JobsError):
    """No worker is alive, so that nothing can be said about a job; come back after `retry_after` seconds."""

    code = "no_live_worker"

    def __init__(self, message: str, *, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class IdempotencyMismatchError(JobsError):
    """The same Idempotency-Key came with another body."""

    code = "idempotency_key_reused"


class IdempotencyInFlightError(JobsError):
    """The first request with this Idempotency-Key has not been answered yet."""

    code = "idempotency_in_flight"


class LinkInvalidError(JobsError):
    """A download link that this service did not sign, or that was altered."""

    code = "link_invalid"


class LinkExpiredError(JobsError):
    """A genuine download link whose time has passed."""

    code = "link_expired"


class StorageError(JobsError):
    """The artifact store cannot do this."""

    code = "storage_error"


class StorageFullError(StorageError):
    """Too little space is left for a job's artifacts."""

    code = "storage_full"


class ArtifactNameError(StorageError):
    """The job made a file that can't be an artifact: it would make it again."""

    code = "artifact_name"


class ArtifactMissingError(StorageError):
    """The database names an artifact whose bytes are not in the store."""

    code = "artifact_missing"
