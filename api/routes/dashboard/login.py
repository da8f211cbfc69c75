"""Logging in and out."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response

from api.auth import identify
from api.context import WithServices
from api.dashboard.rendering import HEADERS, log_in
from api.dashboard.session import COOKIE, LoggedIn, SameOrigin, form_of, local
from api.problem import Problem

router = APIRouter()


@router.post("/ui/login", dependencies=[SameOrigin])
async def login(request: Request, services: WithServices) -> Response:
    """Check a key and remember it in the cookie."""
    try:
        form = await form_of(request, max_fields=8)
    except Problem:
        return log_in("/", "This is not the log-in form: it has too many fields.", 422)
    key = form.get("key", [""])[0].strip()
    target = local(form.get("next", ["/"])[0])
    try:
        principal = await identify(request, key)
    except Problem as problem:
        answer = log_in(target, problem.detail, problem.status)
        answer.headers.update(problem.headers)
        return answer
    if not principal.may("jobs:read"):
        return log_in(target, "This API key may not read jobs.", 403)
    response = RedirectResponse(target, 303, HEADERS)
    secure = services.settings.public_url.startswith("https://")
    response.set_cookie(COOKIE, key, httponly=True, samesite="strict", secure=secure, path="/")
    return response


@router.post("/ui/logout", dependencies=[SameOrigin])
async def logout() -> Response:
    """Forget the key."""
    response = RedirectResponse("/", 303, HEADERS)
    response.delete_cookie(COOKIE, path="/", httponly=True, samesite="strict")
    return response


@router.get("/ui/session")
async def session_state(_principal: LoggedIn) -> Response:
    """204 for who is logged in; a page whose stream was refused asks here why (401, 429)."""
    return Response(status_code=204)
