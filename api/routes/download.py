"""Downloads by signed link: no key needed, the signature is the permission."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response
from starlette.concurrency import run_in_threadpool

from api.context import WithServices
from api.downloads.linking import open_link
from api.downloads.serving import respond
from api.operations import BYTES_RESPONSES, GET_BYTES

router = APIRouter(prefix="/v1/download", tags=["artifacts"])


@router.get("/{token}/{name}", response_class=Response, responses=BYTES_RESPONSES, openapi_extra=GET_BYTES)
async def download(token: str, name: str, request: Request, services: WithServices) -> Response:
    """The bytes. Takes Range, If-Range and If-None-Match; never redirects."""
    target = await run_in_threadpool(open_link, services, token, name)
    return await respond(request, target.content)


@router.head("/{token}/{name}", response_class=Response, responses=BYTES_RESPONSES, openapi_extra=GET_BYTES)
async def download_head(token: str, name: str, request: Request, services: WithServices) -> Response:
    """The headers of the download without the bytes."""
    return await download(token, name, request, services)
