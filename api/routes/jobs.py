"""Jobs: create, validate, list, get, cancel, retry, delete."""

from __future__ import annotations

from contextlib import suppress
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import Response
from starlette.concurrency import run_in_threadpool

from api import models, submission
from api.auth import Principal, Reader, Writer
from api.body import job_request
from api.context import Services, WithServices, acting, services_of
from api.downloads.conditional import MAX_END_SECONDS, field, none_match, prefer_wait
from api.operations import CREATE_JOB, GET_JOB, JOB_BODY
from api.problem import Problem, field_error, invalid
from api.views import deprecation_headers, etag, job_view
from api.waiting.held import wait_for_change, wait_for_end
from jobs.errors import NotFoundError
from jobs.rows import Job
from jobs.specs import KINDS, AnyRequest
from jobs.states import State
from jobs.times import from_rfc3339

router = APIRouter(prefix="/v1", tags=["jobs"])
_POLL_AFTER_SECONDS = "2"
_FILTERS = {"state", "kind", "verdict", "created_after", "created_before", "id_prefix", "cursor", "limit"}
ID_PREFIX = r"^[0-9A-Fa-f-]{1,36}$"
JobBody = Annotated[tuple[AnyRequest, Any], Depends(job_request)]


# routes are tried in the order in which they stand here: the one that is polled comes first
@router.get(
    "/jobs/{job_id}",
    response_model=models.Job,
    responses={304: {"description": "Unchanged since the ETag"}},
    openapi_extra=GET_JOB,
)
async def get_job(principal: Reader, job_id: str, request: Request, response: Response) -> Any:
    """A job. `If-None-Match` gives 304 while nothing changed; `Prefer: wait=N` waits for a change."""
    services = await services_of(request)  # by hand: this is the hot path, and a dependency costs 5 %
    known = field(request.headers, "if-none-match")
    seconds = prefer_wait(field(request.headers, "prefer"))
    headers = {"Vary": "Authorization, Prefer"}
    if seconds:
        headers["Preference-Applied"] = f"wait={seconds}"
    elif known is not None:  # the most frequent request of all: only the version is read
        version = await services.quickly(services.repository.get_version, job_id, principal.sees)
        if none_match(known, etag(version)):
            return Response(status_code=304, headers={**headers, "ETag": etag(version)})
    job = await _job_or_next(services, request, principal, job_id, seconds)
    headers["ETag"] = etag(job)
    if none_match(known, etag(job)):
        return Response(status_code=304, headers=headers)
    response.headers.update(headers)
    if job.state is not State.QUEUED:
        return job_view(job)
    # The ETag does not change with it: it is as of this answer.
    return job_view(job, await services.quickly(services.repository.queue_position, job))


@router.post("/jobs", status_code=202, response_model=models.Job, openapi_extra=CREATE_JOB)
async def create_job(principal: Writer, request: Request, body: JobBody, services: WithServices) -> Response:
    """Create a job; `Prefer: wait=N` answers when it has ended, or after N seconds (at most 60).

    With an Idempotency-Key, the same body again gives the first answer again, or waits again.
    """
    wanted, raw = body
    key = submission.idempotency_key(request.headers.get("idempotency-key"))
    origin = submission.Origin(principal.tenant, request.scope["request_id"], principal.actor)
    answer = await run_in_threadpool(submission.submit, services, origin, wanted, raw, key)
    headers = {"Location": f"/v1/jobs/{answer.job_id}", "Retry-After": _POLL_AFTER_SECONDS}
    headers |= deprecation_headers(wanted)
    text = answer.body
    if seconds := prefer_wait(field(request.headers, "prefer"), MAX_END_SECONDS):
        headers["Preference-Applied"] = f"wait={seconds}"
        with suppress(NotFoundError):  # deleted since: the first answer is all that is left of it
            job = await services.quickly(services.repository.get_job, answer.job_id)
            text = submission.render(await wait_for_end(services, request, job, seconds))
    return Response(text, 202, headers, "application/json")


@router.post("/jobs:validate", response_model=models.Estimate, openapi_extra=JOB_BODY)
def validate_job(
    principal: Writer, body: JobBody, response: Response, services: WithServices
) -> models.Estimate:
    """What a job would need; 422 for one that would be refused. Nothing is created."""
    response.headers.update(deprecation_headers(body[0]))
    return submission.estimate(services, principal.tenant, body[0])


@router.get("/jobs", response_model=models.JobPage)
def list_jobs(
    principal: Reader,
    request: Request,
    response: Response,
    services: WithServices,
    state: State | None = None,
    kind: Annotated[str | None, Query(max_length=32)] = None,
    verdict: models.VerdictWord | None = None,
    created_after: Annotated[str | None, Query(max_length=64, description="RFC 3339")] = None,
    created_before: Annotated[str | None, Query(max_length=64, description="RFC 3339")] = None,
    id_prefix: Annotated[str | None, Query(pattern=ID_PREFIX, description="how an id begins")] = None,
    cursor: Annotated[str | None, Query(max_length=128)] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 50,
) -> models.JobPage:
    """Jobs, newest first; `label.K=V` filters by label, `label.K` by whether there is such a label.

    The next page is in Link and in next_cursor.
    """
    page = services.repository.list_jobs(
        principal.sees,
        state=state,
        kind=_known_kind(kind),
        verdict=verdict,
        labels=_label_filters(request),
        created_after=_moment("created_after", created_after),
        created_before=_moment("created_before", created_before),
        id_prefix=id_prefix,
        cursor=cursor,
        limit=limit,
    )
    if page.next_cursor is not None:
        following = request.url.include_query_params(cursor=page.next_cursor)
        response.headers["Link"] = f'<{following.path}?{following.query}>; rel="next"'
    items = [job_view(job) for job in page.items]
    return models.JobPage.model_construct(items=items, next_cursor=page.next_cursor)


@router.post(
    "/jobs/{job_id}/cancel",
    status_code=202,
    response_model=models.Job,
    responses={200: {"model": models.Job, "description": "It was cancelled before"}},
)
def cancel_job(
    job_id: str, request: Request, response: Response, principal: Writer, services: WithServices
) -> models.Job:
    """Cancel a job: at once while it is queued, soon while it runs; 409 when it has ended otherwise."""
    before = services.repository.get_job(job_id, principal.sees)
    if before.state is State.CANCELLED:
        response.status_code = 200
        return job_view(before)
    return job_view(acting(services, request, principal).cancel_job(job_id))


@router.post("/jobs/{job_id}/retry", status_code=202, response_model=models.Job)
def retry_job(job_id: str, request: Request, principal: Writer, services: WithServices) -> models.Job:
    """Try an ended job again, as a new attempt of the same job; 409 for one that succeeded or still runs."""
    services.repository.get_job(job_id, principal.sees)
    job = acting(services, request, principal).retry_job(job_id)
    services.wake_dispatcher()
    return job_view(job)


@router.delete("/jobs/{job_id}", status_code=204, response_class=Response)
def delete_job(job_id: str, request: Request, principal: Writer, services: WithServices) -> None:
    """Delete an ended job with its artifacts, and revoke their links; 409 while it has not ended."""
    services.repository.get_job(job_id, principal.sees)
    submission.delete(services, acting(services, request, principal), job_id)


async def _job_or_next(
    services: Services, request: Request, principal: Principal, job_id: str, seconds: int
) -> Job:
    """The job; if the caller waits and knows it as it is, the job after its next change."""
    job = await services.quickly(services.repository.get_job, job_id, principal.sees)
    known = field(request.headers, "if-none-match")
    # without an ETag, a job that has ended is news already
    if seconds and (none_match(known, etag(job)) or (known is None and not job.terminal)):
        return await wait_for_change(services, request, job, seconds)
    return job


def _known_kind(kind: str | None) -> str | None:
    if kind is not None and kind not in KINDS:
        raise invalid([field_error(["query", "kind"], f"One of {', '.join(KINDS)}.", "enum")])
    return kind


def _moment(name: str, text: str | None) -> int | None:
    try:
        # a "+" of an offset that was not percent-encoded arrives as a space
        return None if text is None else from_rfc3339(text.replace(" ", "+"))
    except ValueError:
        raise invalid([field_error(["query", name], "Not an RFC 3339 time.", "time")]) from None


def _label_filters(request: Request) -> dict[str, str | None]:
    """The `label.K=V` and `label.K` parameters; any other is a mistake that would widen the list."""
    labels: dict[str, str | None] = {}
    for name, text in request.query_params.multi_items():
        if name.startswith("label.") and name != "label.":
            value = text or None
            if labels.setdefault(name.removeprefix("label."), value) != value:
                raise Problem(422, "validation_failed", f"{name} is given twice with different values.")
        elif name not in _FILTERS:
            raise invalid([field_error(["query", name], "There is no such parameter.", "unknown")])
    if len(labels) > 8:
        raise invalid([field_error(["query", "label"], "At most 8 labels.", "too_many")])
    return labels
