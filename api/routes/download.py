"""Downloads by signed link: no key needed, the signature is the permission."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response
from starlette.concurrency import run_in_threadpool

from api.context import WithServices
from api.downloads import respond
from api.linking import open_link

router = APIRouter(prefix="/v1/download", tags=["artifacts"])
_RESPONSES: dict[int | str, dict[str, object]] = {
    200: {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}},
    206: {"description": "The ranges that were asked for"},
    304: {"description": "The caller has these bytes already"},
    416: {"description": "No such bytes"},
}


@router.get("/{token}/{name}", response_class=Response, responses=_RESPONSES)
async def download(token: str, name: str, request: Request, services: WithServices) -> Response:
    """The bytes. Takes Range, If-Range and If-None-Match; never redirects."""
    target = await run_in_threadpool(open_link, services, token, name)
    return await respond(request, target.content)


@router.head("/{token}/{name}", response_class=Response, responses=_RESPONSES)
async def download_head(token: str, name: str, request: Request, services: WithServices) -> Response:
    """The headers of the download without the bytes."""
    return await download(token, name, request, services)
