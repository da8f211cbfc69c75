"""A problem as a page, for somebody who asked for one with a browser."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable

from fastapi import Request
from fastapi.responses import Response

from api.dashboard.rendering import page
from api.problem import MEDIA_TYPE

Handler = Callable[[Request, Exception], Awaitable[Response]]
_PASSED_ON = ("retry-after", "www-authenticate", "allow")


def for_people(handler: Handler) -> Handler:
    """The handler, whose problem documents become pages where a browser asked for a page."""

    async def answer(request: Request, error: Exception) -> Response:
        response = await handler(request, error)
        wants_page = "text/html" in request.headers.get("accept", "")
        if response.media_type != MEDIA_TYPE or not wants_page or request.url.path.startswith("/v1"):
            return response
        told = json.loads(bytes(response.body))
        shown = page("refused.html", None, status=response.status_code, told=told)
        shown.headers.update(
            {name: response.headers[name] for name in _PASSED_ON if name in response.headers}
        )
        return shown

    return answer
