"""What became of a job: events, attempts, metrics, verdict, manifest."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from pydantic import BeforeValidator
from starlette.concurrency import run_in_threadpool

from api import models
from api.auth import Principal, Reader
from api.context import Services, WithServices
from api.dashboard.compare import Comparison, differences
from api.downloads.conditional import MAX_END_SECONDS, field
from api.operations import GET_EVENTS, VERDICT_RESPONSES
from api.problem import Problem
from api.verdict.answering import VARY, answer, not_ended, wanted_form
from api.views import attempt_view, event_view
from api.waiting.held import event_stream, wait_for_end
from jobs.rows import Job
from jobs.states import State

router = APIRouter(prefix="/v1/jobs/{job_id}", tags=["results"])
_MAX_SEQ = 2**53
# anything else is refused: taken for "no", a "yes" would let a CI step pass
Strictness = Annotated[Literal["0", "1", "false", "true"], BeforeValidator(str.lower), Query()]


@router.get(
    "/events",
    response_model=models.EventList,
    responses={200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}},
    openapi_extra=GET_EVENTS,
)
async def get_events(
    job_id: str,
    request: Request,
    principal: Reader,
    services: WithServices,
    after: Annotated[int, Query(ge=0, le=_MAX_SEQ)] = 0,
) -> Any:
    """The events after a number; with `Accept: text/event-stream` as they happen, to the last one."""
    job = await services.quickly(services.repository.get_job, job_id, principal.sees)
    if "text/event-stream" in request.headers.get("accept", ""):
        start = _last_event_id(request.headers.get("last-event-id"), after)
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(event_stream(services, job, start), 200, headers, "text/event-stream")
    events = await services.quickly(services.repository.list_events, job_id, after=after)
    reached = events[-1].seq if events else after
    ended = job.terminal and reached >= job.last_seq
    return models.EventList(items=[event_view(event) for event in events], terminal=ended)


@router.get("/attempts", response_model=models.AttemptList)
def get_attempts(job_id: str, principal: Reader, services: WithServices) -> models.AttemptList:
    """Every try at the job, the oldest first."""
    services.repository.get_job(job_id, principal.sees)
    found = services.repository.list_attempts(job_id)
    return models.AttemptList(items=[attempt_view(attempt) for attempt in found])


@router.get("/manifest", response_class=PlainTextResponse)
def get_manifest(job_id: str, principal: Reader, services: WithServices) -> PlainTextResponse:
    """The SHA-256 of every artifact, as `sha256sum -c` reads it."""
    check_kept(with_results(services, job_id, principal))
    artifacts = services.repository.list_artifacts(job_id)
    return PlainTextResponse("".join(f"{a.sha256}  {a.name}\n" for a in artifacts))


@router.get("/metrics", response_model=dict[str, Any])
def get_metrics(job_id: str, principal: Reader, services: WithServices) -> JSONResponse:
    """The metrics of a job that succeeded, or of the finished steps of a pipeline that did not."""
    with_results(services, job_id, principal)
    return JSONResponse(services.repository.get_metrics(job_id) or {})


@router.get("/verdict", response_model=models.Verdict, responses=VERDICT_RESPONSES)
async def get_verdict(
    job_id: str,
    request: Request,
    principal: Reader,
    services: WithServices,
    strict: Strictness = "0",
    wait: Annotated[int | None, Query(ge=0, description="seconds; above 60 is taken as 60")] = None,
) -> Response:
    """What the gates say of an ended job; `strict=1` makes everything but a pass a 412.

    With `wait=N` it answers when the job has ended, or after N seconds with 408, which `curl --retry`
    repeats. As JSON, Markdown (`text/markdown`) or JUnit (`application/xml`).
    """
    form = wanted_form(field(request.headers, "accept"))
    job = await services.quickly(services.repository.get_job, job_id, principal.sees)
    if wait is not None:
        job = await wait_for_end(services, request, job, min(wait, MAX_END_SECONDS))
    if job.terminal:
        return await run_in_threadpool(answer, services, job, form, strict=strict in ("1", "true"))
    if wait is not None:
        return not_ended(job, form)
    detail = f"The job is {job.state.value}; there is no verdict yet."
    raise Problem(409, "job_not_ended", detail, headers=VARY)


def with_results(services: Services, job_id: str, principal: Principal) -> Job:
    """The job, if it has succeeded, or is a pipeline of which some steps have.

    Raises:
        Problem: 409 when it has no results (yet).
    """
    job = services.repository.get_job(job_id, principal.sees)
    if not job.has_results:
        raise Problem(409, "job_not_succeeded", f"The job is {job.state.value}; only success has results.")
    return job


def check_kept(job: Job) -> None:
    """Refuse with 410 what is asked of the files of a job that succeeded so long ago that they are gone."""
    if job.state is State.SUCCEEDED and job.artifacts_expire_at is None:
        raise Problem(410, "artifact_expired", "The files of this job are no longer kept.")


def _last_event_id(header: str | None, after: int) -> int:
    """Where a stream resumes; an id that this service did not give is as good as none."""
    if header is None or not header.isascii() or not header.isdigit():
        return after
    return min(int(header), _MAX_SEQ)


@router.get("/comparison/{other_id}", response_model=Comparison)
def get_comparison(job_id: str, other_id: str, principal: Reader, services: WithServices) -> Comparison:
    """Another job beside this one: the fields of the specification that differ, and the metrics of both."""
    first, second = (services.repository.get_job(each, principal.sees) for each in (job_id, other_id))
    return differences(services, first, second)
