"""Two jobs side by side."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse
from starlette.concurrency import run_in_threadpool

from api.auth import Principal
from api.context import Services, WithServices
from api.dashboard.compare import comparison
from api.dashboard.listing import job_head
from api.dashboard.rendering import log_in_first, page
from api.dashboard.session import Session, here
from jobs.errors import NotFoundError

router = APIRouter()
_OFFERED = 50


@router.get("/ui/compare")
async def compare_page(
    request: Request,
    principal: Session,
    services: WithServices,
    ids: Annotated[list[str] | None, Query(alias="id", max_length=50)] = None,
) -> HTMLResponse:
    """The comparison of the first two jobs that are named; with fewer, what they could be."""
    if principal is None:
        return log_in_first(here(request))
    wanted = [job_id for job_id in dict.fromkeys(ids or []) if job_id][:2]
    try:
        context = await run_in_threadpool(_context, services, principal, wanted)
    except NotFoundError:
        return page("missing.html", principal, status=404)
    return page("compare.html", principal, place="jobs", chosen=wanted, **context)


def _context(services: Services, principal: Principal, wanted: list[str]) -> dict[str, Any]:
    repository = services.repository
    jobs = [repository.get_job(job_id, principal.sees) for job_id in wanted]
    now = repository.now()
    recent = repository.list_jobs(principal.sees, limit=_OFFERED).items
    offered = {job.id: job for job in [*jobs, *recent]}
    found = comparison(services, jobs[0], jobs[1]) if len(jobs) == 2 else {"pair": []}
    return {**found, "offered": [job_head(job, now) for job in offered.values()]}
