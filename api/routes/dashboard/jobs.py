"""The list of jobs: live, filtered by its address, with bulk actions."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response, StreamingResponse
from starlette.concurrency import run_in_threadpool

from api.auth import Principal
from api.context import Services, WithServices, acting
from api.dashboard.listing import PAGE, Filters, find, table
from api.dashboard.rendering import HEADERS, STREAM_HEADERS, fragment, log_in, page
from api.dashboard.session import LoggedIn, SameOrigin, Session, Writer, form_of, here, still_there
from api.dashboard.words import plural
from api.problem import Problem
from jobs.errors import JobsError
from jobs.repository import Repository

router = APIRouter()
_VERBS = {"cancel": ("cancelled", Repository.cancel_job), "retry": ("tried again", Repository.retry_job)}


@router.get("/")
async def jobs_page(request: Request, principal: Session, services: WithServices) -> HTMLResponse:
    """The list of jobs, or the log-in form."""
    if principal is None:
        return log_in(here(request))
    filters = Filters.of(request.query_params.multi_items())
    return page("jobs.html", principal, place="jobs", **await _table(services, principal, filters))


@router.get("/ui/jobs")
async def jobs_fragment(request: Request, principal: LoggedIn, services: WithServices) -> HTMLResponse:
    """The table of the list alone."""
    filters = Filters.of(request.query_params.multi_items())
    return page("jobs_table.html", principal, **await _table(services, principal, filters))


@router.get("/ui/jobs/stream")
async def jobs_stream(request: Request, principal: LoggedIn, services: WithServices) -> StreamingResponse:
    """The table again after each change; all who look at the same table share one query a second."""
    filters = Filters.of(request.query_params.multi_items())
    seen: dict[str, Any] = {"rows": None, "text": ""}

    def make() -> str:
        found = find(services, principal.sees, filters)
        rows = [(job.id, job.version) for job in found.items]
        if rows != seen["rows"]:  # that time passes is no news: the page's script tells it
            context = table(services, principal.sees, filters, found)
            seen["text"] = fragment("jobs_table.html", principal, **context)
            seen["rows"] = rows
        return str(seen["text"])

    async def now() -> str:
        return await run_in_threadpool(make)

    stream = services.feeds.follow(
        ("jobs", principal.sees, principal.scopes, filters),
        now,
        allowed=still_there(request),
        ends=lambda: services.notifier.closing,
    )
    return StreamingResponse(stream, headers=STREAM_HEADERS, media_type="text/event-stream")


@router.post("/ui/jobs/bulk", dependencies=[SameOrigin])
async def bulk(request: Request, principal: Writer, services: WithServices) -> Response:
    """Cancel or retry the jobs that were ticked, as many as can be; what can't is said."""
    form = await form_of(request)
    action, ids = form.get("action", [""])[0], form.get("id", [])[:PAGE]
    if action not in _VERBS:
        raise Problem(404, "not_found", "There is no such action.")
    repository = acting(services, request, principal)
    told = await run_in_threadpool(_do_all, repository, principal, action, ids)
    services.wake_dispatcher()
    filters = Filters.of([(name, values[0]) for name, values in form.items() if name not in ("action", "id")])
    if not told["refused"]:
        return RedirectResponse("/?" + filters.query(), 303, HEADERS)
    context = await _table(services, principal, filters)
    return page("jobs.html", principal, place="jobs", told=told, **context)


def _do_all(repository: Repository, principal: Principal, action: str, ids: list[str]) -> dict[str, Any]:
    done, refused = 0, []
    word, verb = _VERBS[action]
    for job_id in ids:
        try:
            repository.get_job(job_id, principal.sees)
            verb(repository, job_id)
        except JobsError as error:
            refused.append(f"{job_id[-12:]}: {error.message}")
        else:
            done += 1
    return {"done": f"{plural(done, 'job')} {word}", "refused": refused}


async def _table(services: Services, principal: Principal, filters: Filters) -> dict[str, Any]:
    def make() -> dict[str, Any]:
        found = find(services, principal.sees, filters)
        return table(services, principal.sees, filters, found)

    return await run_in_threadpool(make)
