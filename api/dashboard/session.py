"""Who is logged in.

People log in with an API key. It is kept in an HttpOnly cookie that only the dashboard reads: the API proper
takes no cookie, so no other site can make a browser use it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated
from urllib.parse import parse_qs, urlsplit

from fastapi import Depends, Request

from api.auth import Principal, identify, unauthorized
from api.problem import Problem

COOKIE = "optipfair_key"
_PAGES = ("/jobs/", "/ui/new", "/ui/compare", "/ui/system", "/ui/models", "/ui/access", "/?")


async def session(request: Request) -> Principal | None:
    """Who is logged in, if anybody is; a key that no longer works counts as nobody."""
    found = await _holder(request)
    if found is None:
        return None
    limiter = request.app.state.services.authenticator.requests
    verdict = limiter.take(found.key_id)
    if not verdict.allowed:
        raise limiter.refusal(verdict)
    return found if found.may("jobs:read") else None


async def _holder(request: Request) -> Principal | None:
    key = request.cookies.get(COOKIE)
    if not key:
        return None
    try:
        return await identify(request, key)
    except Problem as problem:
        if problem.status == 401:
            return None
        raise


def still_there(request: Request) -> Callable[[], Awaitable[bool]]:
    """Whether the key of a long stream still works; it costs a query every two seconds at most."""

    async def check() -> bool:
        return await _holder(request) is not None

    return check


async def logged_in(found: Annotated[Principal | None, Depends(session)]) -> Principal:
    """Who is logged in; 401 for fragments that make no sense without."""
    if found is None:
        raise unauthorized("Log in first.")
    return found


async def writer(found: Annotated[Principal, Depends(logged_in)]) -> Principal:
    """Who is logged in and may change things."""
    if not found.may("jobs:write"):
        raise Problem(403, "scope_missing", "This API key lacks the scope jobs:write.")
    return found


async def admin(found: Annotated[Principal, Depends(logged_in)]) -> Principal:
    """Who is logged in as an admin."""
    if not found.admin:
        raise Problem(403, "scope_missing", "This API key lacks the scope admin.")
    return found


def same_origin(request: Request) -> None:
    """Refuse a form that another site sent (the cookie is SameSite=Strict besides)."""
    site = request.headers.get("sec-fetch-site", "same-origin")
    origin = request.headers.get("origin")
    host = request.headers.get("host", "")
    if site not in ("same-origin", "none") or (
        origin not in (None, "null") and urlsplit(origin).netloc != host
    ):
        raise Problem(403, "cross_site", "This form was sent from another site.")


def local(target: str) -> str:
    """A path of this dashboard, so that logging in can't be made to lead elsewhere."""
    known = target == "/" or target.startswith(_PAGES)
    return target if known and not set(target) & set("\\\r\n") else "/"


def here(request: Request) -> str:
    """The page that is asked for, with its query: where logging in shall lead."""
    query = request.url.query
    return request.url.path + (f"?{query}" if query else "")


async def form_of(request: Request, *, max_fields: int = 200) -> dict[str, list[str]]:
    """The fields of a form; Problem 422 for more than it can have."""
    try:
        text = (await request.body()).decode("utf-8", "replace")
        return parse_qs(text, keep_blank_values=True, max_num_fields=max_fields)
    except ValueError:
        raise Problem(422, "validation_failed", "This form has too many fields.") from None


Session = Annotated[Principal | None, Depends(session)]
LoggedIn = Annotated[Principal, Depends(logged_in)]
Writer = Annotated[Principal, Depends(writer)]
Admin = Annotated[Principal, Depends(admin)]
SameOrigin = Depends(same_origin)
