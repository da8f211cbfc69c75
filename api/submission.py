"""From a request to a job: admission, idempotency, creation; and what undoes it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from api import models
from api.context import Services
from api.observability import trace_context
from api.problem import field_error, invalid
from api.views import job_view
from jobs.access.audit import Actor
from jobs.errors import InvalidError, StorageError
from jobs.logs import structlog
from jobs.repository import Repository
from jobs.rows import Idempotency, Job
from jobs.specs import AnyRequest, upload_references
from jobs.webhooks import check_webhook_url

_log = structlog.get_logger("api.submission")
_KEY = re.compile(r"[\x21-\x7e]{1,255}")


@dataclass(frozen=True)
class Origin:
    """Where a request came from."""

    tenant: str
    request_id: str
    actor: Actor


@dataclass(frozen=True)
class Answer:
    """The answer to a creation: the first one, when the same request comes again."""

    job_id: str
    body: str


def idempotency_key(header: str | None) -> str | None:
    """The Idempotency-Key header, bare or quoted; None without one.

    Raises:
        Problem: 422 when it is empty, too long or not printable.
    """
    if header is None:
        return None
    key = header.strip()
    if len(key) >= 2 and key[0] == key[-1] == '"':
        key = key[1:-1]
    if _KEY.fullmatch(key) is None:
        detail = "1 to 255 printable ASCII characters without spaces."
        raise invalid([field_error(["header", "Idempotency-Key"], detail, "string_pattern_mismatch")])
    return key


def submit(services: Services, origin: Origin, request: AnyRequest, raw: Any, key: str | None) -> Answer:
    """Create the job, or find the first answer to the same request."""
    with _idempotent(services, origin.tenant, key, raw) as first:
        if first is not None and first.response is not None and first.job_id is not None:
            return Answer(first.job_id, first.response)
        job = _create(services, origin, request, first)
    services.wake_dispatcher()
    return Answer(job.id, render(job))


def render(job: Job) -> str:
    """The body of the answer, as it is stored for a repeat of the request."""
    return job_view(job).model_dump_json()


def estimate(services: Services, tenant: str, request: AnyRequest) -> models.Estimate:
    """What a job would need; refused as its creation would be."""
    from jobs.admission import admit

    _check_webhook(services, request)
    admission = admit(services.repository, tenant, request)
    cost = admission.estimate
    return models.Estimate(
        peak_memory_bytes=None if cost is None else cost.peak_memory_bytes,
        output_bytes=None if cost is None else cost.output_bytes,
        seconds=None if cost is None else cost.seconds,
        queue=admission.queue,
        execution=None if cost is None else cost.execution,
        reason=None if cost is None else cost.reason,
        warnings=[models.JobWarning(**warning) for warning in admission.warnings],
    )


def delete(services: Services, repository: Repository, job_id: str) -> None:
    """Forget an ended job and remove its files; what can't be removed now is found as an orphan later."""
    for storage in repository.delete_job(job_id):
        try:
            services.store.delete(storage)
        except StorageError as error:
            _log.warning("files_left", job_id=job_id, storage=storage, error=error.message)


def _create(services: Services, origin: Origin, request: AnyRequest, first: Idempotency | None) -> Job:
    from jobs.admission import admit

    _check_webhook(services, request)
    admission = admit(services.repository, origin.tenant, request)
    services.repository.keep_uploads([upload_id for _, upload_id, _ in upload_references(request.spec)])
    mine = services.repository.on_behalf(origin.actor, origin.request_id)
    return mine.create_job(
        origin.tenant,
        request,
        queue=admission.queue,
        warnings=admission.warnings,
        output_bytes=0 if admission.estimate is None else admission.estimate.output_bytes,
        reuse_key=admission.reuse_key,
        idempotency=first,
        render=render,
        request_id=origin.request_id,
        traceparent=trace_context().get("traceparent"),
    )


def _check_webhook(services: Services, request: AnyRequest) -> None:
    if request.webhook_url is None:
        return
    try:
        check_webhook_url(request.webhook_url, allow_loopback=services.settings.allow_loopback_webhooks)
    except InvalidError as error:
        raise InvalidError(error.message, code=error.code, location=("body", "webhook_url")) from None


@contextmanager
def _idempotent(services: Services, tenant: str, key: str | None, raw: Any) -> Iterator[Idempotency | None]:
    """Hold an Idempotency-Key while its request is carried out; free again if that fails."""
    if key is None:
        yield None
        return
    first = services.repository.begin_idempotent(tenant, key, raw)
    try:
        yield first
    except BaseException:
        if first.token is not None:
            services.repository.abandon_idempotent(tenant, first.token)
        raise
