"""The page of one job: followed live to its end, with its results and what can be done to it."""

from __future__ import annotations

from contextlib import suppress
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response, StreamingResponse
from starlette.concurrency import run_in_threadpool

from api.auth import Principal
from api.context import Services, WithServices, acting
from api.dashboard import job as view
from api.dashboard.rendering import HEADERS, STREAM_HEADERS, fragment, log_in, page
from api.dashboard.session import LoggedIn, SameOrigin, Session, Writer, still_there
from api.dashboard.stream import job_stream
from api.downloads.serving import archive_response, artifact_response
from api.failures import problem_for
from api.problem import Problem
from api.waiting.logs import from_id
from jobs.errors import ConflictError, NotFoundError, QueueFullError, QuotaExceededError
from jobs.rows import Job

router = APIRouter()


@router.get("/jobs/{job_id}")
async def job_page(job_id: str, principal: Session, services: WithServices) -> HTMLResponse:
    """One job, or the log-in form."""
    if principal is None:
        return log_in(f"/jobs/{job_id}")
    try:
        context = await run_in_threadpool(_context, services, principal, job_id)
    except NotFoundError:
        return page("missing.html", principal, status=404)
    return page("job.html", principal, **context)


@router.get("/ui/jobs/{job_id}/stream")
async def follow(
    request: Request,
    job_id: str,
    principal: LoggedIn,
    services: WithServices,
    after: Annotated[str, Query(max_length=32)] = "",
) -> StreamingResponse:
    """The body of the job's page again after each change, and the lines of its log, until it has ended."""
    await run_in_threadpool(services.repository.get_job, job_id, principal.sees)

    def render(job: Job) -> str:
        may_write = principal.may("jobs:write")
        return fragment("job_body.html", principal, may_write=may_write, **view.body(services, job))

    stream = job_stream(
        services,
        job_id,
        render,
        key=principal.scopes,
        after=from_id(request.headers.get("last-event-id") or after),
        allowed=still_there(request),
    )
    return StreamingResponse(stream, headers=STREAM_HEADERS, media_type="text/event-stream")


@router.post("/ui/jobs/{job_id}/{action}", dependencies=[SameOrigin])
async def act(
    request: Request, job_id: str, action: str, principal: Writer, services: WithServices
) -> Response:
    """Cancel or retry; a click that came too late is no error, and a refusal is said on the job's page."""
    repository = acting(services, request, principal)
    verbs = {"cancel": repository.cancel_job, "retry": repository.retry_job}
    if action not in verbs:
        raise Problem(404, "not_found", "There is no such resource.")
    await run_in_threadpool(services.repository.get_job, job_id, principal.sees)
    try:
        with suppress(ConflictError):
            await run_in_threadpool(verbs[action], job_id)
    except (QuotaExceededError, QueueFullError) as refusal:
        return await _refused(services, principal, job_id, problem_for(refusal))
    services.wake_dispatcher()
    return RedirectResponse(f"/jobs/{job_id}", 303, HEADERS)


@router.get("/ui/jobs/{job_id}/artifacts/{name}")
async def job_file(
    request: Request, job_id: str, name: str, principal: LoggedIn, services: WithServices
) -> Response:
    """A file of a job, for the pictures and links of its page."""
    job = await run_in_threadpool(services.repository.get_job, job_id, principal.sees)
    return await artifact_response(services, request, job, name)


@router.get("/ui/jobs/{job_id}/archive")
async def job_archive(request: Request, job_id: str, principal: LoggedIn, services: WithServices) -> Response:
    """All files of a job in one tar."""
    job = await run_in_threadpool(services.repository.get_job, job_id, principal.sees)
    return await archive_response(services, request, job)


async def _refused(services: Services, principal: Principal, job_id: str, problem: Problem) -> HTMLResponse:
    """The job's page, with what was refused and why."""
    context = await run_in_threadpool(_context, services, principal, job_id)
    answer = page("job.html", principal, status=problem.status, refusal=problem.detail, **context)
    answer.headers.update(problem.headers)
    return answer


def _context(services: Services, principal: Principal, job_id: str) -> dict[str, Any]:
    job = services.repository.get_job(job_id, principal.sees)
    parts = view.body(services, job) | view.fixed(services, job) | view.log(services, job)
    return {**parts, "place": "jobs", "may_write": principal.may("jobs:write")}
