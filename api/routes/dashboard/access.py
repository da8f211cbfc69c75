"""Keys, trust rules and the newest of the audit, for admins: the calls of `/v1` behind forms."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from pydantic import BaseModel, ValidationError
from starlette.concurrency import run_in_threadpool

from api import models
from api.auth import Principal
from api.body import problem_of
from api.context import Services, WithServices
from api.dashboard.form import Form, one, pairs_of
from api.dashboard.rendering import HEADERS, log_in_first, page
from api.dashboard.session import Admin, SameOrigin, Session, form_of, here
from api.failures import problem_for
from api.problem import Problem
from api.routes import keys, tokens
from api.tokens.models import TrustRequest
from jobs.errors import JobsError, NotFoundError

router = APIRouter()
_BACK = "/ui/access"
_AUDIT = 20
M = TypeVar("M", bound=BaseModel)


@router.get("/ui/access")
async def access_page(request: Request, principal: Session, services: WithServices) -> HTMLResponse:
    """Who may do what."""
    if principal is None:
        return log_in_first(here(request))
    if not principal.admin:
        raise Problem(403, "scope_missing", "This API key lacks the scope admin.")
    return await _answer(services, principal)


@router.post("/ui/access/keys", dependencies=[SameOrigin])
async def create_key(request: Request, principal: Admin, services: WithServices) -> HTMLResponse:
    """Make a key, and show it this once."""
    form = await form_of(request)

    def make() -> models.KeyCreated:
        body: dict[str, Any] = {"scopes": form.get("scopes", []), "name": one(form, "name")}
        body |= {name: one(form, name) for name in ("tenant", "expires_at") if one(form, name)}
        wanted = _checked(models.KeyRequest, body)
        return keys.create_key(principal, wanted, request, Response(), services)

    try:
        made = await run_in_threadpool(make)
    except (Problem, JobsError) as refusal:
        return await _answer(services, principal, form=form, refusal=refusal)
    return await _answer(services, principal, made=made)


@router.post("/ui/access/trust", dependencies=[SameOrigin])
async def create_trust(request: Request, principal: Admin, services: WithServices) -> Response:
    """Let a CI system's tokens in."""
    form = await form_of(request)

    def make() -> None:
        body: dict[str, Any] = {"issuer": one(form, "issuer"), "audience": one(form, "audience")}
        body |= {"claims": pairs_of(one(form, "claims"), "claims"), "scopes": form.get("scopes", [])}
        body |= {"tenant": one(form, "tenant")} if one(form, "tenant") else {}
        tokens.create_trust(principal, _checked(TrustRequest, body), request, Response(), services)

    try:
        await run_in_threadpool(make)
    except (Problem, JobsError) as refusal:
        return await _answer(services, principal, form=form, refusal=refusal)
    return RedirectResponse(_BACK, 303, HEADERS)


@router.post("/ui/access/keys/{key_id}/revoke", dependencies=[SameOrigin])
async def revoke_key(key_id: str, request: Request, principal: Admin, services: WithServices) -> Response:
    """Revoke a key; a repeat is safe."""
    with suppress(NotFoundError):
        await run_in_threadpool(keys.revoke_key, key_id, request, principal, services)
    return RedirectResponse(_BACK, 303, HEADERS)


@router.post("/ui/access/trust/{rule_id}/delete", dependencies=[SameOrigin])
async def delete_trust(rule_id: str, request: Request, principal: Admin, services: WithServices) -> Response:
    """Let a CI system in no longer."""
    with suppress(NotFoundError):
        await run_in_threadpool(tokens.delete_trust, rule_id, principal, request, services)
    return RedirectResponse(_BACK, 303, HEADERS)


def _checked(model: type[M], body: dict[str, Any]) -> M:
    try:
        return model.model_validate(body)
    except ValidationError as error:
        raise problem_of(error, body, model) from None


async def _answer(
    services: Services,
    principal: Principal,
    *,
    form: Form | None = None,
    made: models.KeyCreated | None = None,
    refusal: Problem | JobsError | None = None,
) -> HTMLResponse:
    problem = problem_for(refusal) if isinstance(refusal, JobsError) else refusal

    def make() -> dict[str, Any]:
        return {
            "keys": [key for key in keys.list_keys(principal, services).items if not key.revoked_at],
            "rules": tokens.list_trust(principal, services).items,
            "audit": services.repository.list_audit(limit=_AUDIT).items,
            "now": services.repository.now(),
        }

    context = await run_in_threadpool(make)
    values = {name: given[0] for name, given in (form or {}).items()}
    status = 200 if problem is None else problem.status
    return page(
        "access.html",
        principal,
        status=status,
        place="access",
        made=made,
        problem=problem,
        values=values,
        **context,
    )
