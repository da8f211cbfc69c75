"""The system page, live, and the page of models, texts and uploads."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response, StreamingResponse
from starlette.concurrency import run_in_threadpool

from api.auth import Principal
from api.context import Services, WithServices, acting
from api.dashboard.overview import system, upload_line
from api.dashboard.rendering import HEADERS, STREAM_HEADERS, fragment, log_in_first, page
from api.dashboard.session import LoggedIn, SameOrigin, Session, Writer, here, still_there
from api.routes.models import list_calibrations, list_models, list_suites
from api.routes.uploads import remove_upload
from jobs.errors import NotFoundError

router = APIRouter()
_PAUSE_SECONDS = 3.0


@router.get("/ui/system")
async def system_page(request: Request, principal: Session, services: WithServices) -> HTMLResponse:
    """Workers, queues, room, loops and versions."""
    if principal is None:
        return log_in_first(here(request))
    context = await run_in_threadpool(system, services, principal)
    return page("system.html", principal, place="system", **context)


@router.get("/ui/system/stream")
async def system_stream(request: Request, principal: LoggedIn, services: WithServices) -> StreamingResponse:
    """The same again after each change."""

    def make() -> str:
        return fragment("system_body.html", principal, **system(services, principal))

    async def now() -> str:
        return await run_in_threadpool(make)

    stream = services.feeds.follow(
        ("system", principal.tenant, principal.admin),
        now,
        allowed=still_there(request),
        ends=lambda: services.notifier.closing,
        pause=_PAUSE_SECONDS,
    )
    return StreamingResponse(stream, headers=STREAM_HEADERS, media_type="text/event-stream")


@router.get("/ui/models")
async def models_page(request: Request, principal: Session, services: WithServices) -> HTMLResponse:
    """What a job can name, and what the tenant has uploaded."""
    if principal is None:
        return log_in_first(here(request))
    context = await run_in_threadpool(_models, services, principal)
    return page("models.html", principal, place="models", **context)


def _models(services: Services, principal: Principal) -> dict[str, Any]:
    repository = services.repository
    now = repository.now()
    return {
        "models": list_models(principal, services),
        "calibrations": list_calibrations(principal, services).items,
        "suites": list_suites(principal, services).items,
        "uploads": [upload_line(upload, now) for upload in repository.list_uploads(principal.sees)],
        "base": services.settings.public_url,
    }


@router.post("/ui/models/uploads/{upload_id}/delete", dependencies=[SameOrigin])
async def delete_upload(
    upload_id: str, request: Request, principal: Writer, services: WithServices
) -> Response:
    """Delete an upload; one that is gone already is no error."""
    repository = acting(services, request, principal)
    with suppress(NotFoundError):
        await run_in_threadpool(remove_upload, services, repository, upload_id, principal.sees)
    return RedirectResponse("/ui/models", 303, HEADERS)
