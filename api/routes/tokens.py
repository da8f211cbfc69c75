"""Keyless callers: trust rules (admin), the exchange of tokens, and the audit (admin)."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import Response

from api.auth import Admin
from api.body import body_of
from api.context import WithServices, acting
from api.operations import TOKEN, body_schema
from api.tokens.exchange import ACCESS_TOKEN, RefusedError, exchange, parse_wish
from api.tokens.models import AuditEntry, AuditPage, Token, TokenError, Trust, TrustList, TrustRequest
from jobs.access.trust import TrustRule, check_rule
from jobs.errors import InvalidError
from jobs.times import rfc3339

router = APIRouter(prefix="/v1", tags=["access"])
TrustBody = Annotated[TrustRequest, Depends(body_of(TrustRequest))]
_NO_STORE = {"Cache-Control": "no-store", "Pragma": "no-cache"}


@router.get("/trust", response_model=TrustList)
def list_trust(_principal: Admin, services: WithServices) -> TrustList:
    """Whose tokens are exchanged, and for what."""
    return TrustList(items=[_view(rule) for rule in services.repository.list_trust()])


@router.post("/trust", status_code=201, response_model=Trust, openapi_extra=body_schema(TrustRequest))
def create_trust(
    principal: Admin, wanted: TrustBody, request: Request, response: Response, services: WithServices
) -> Trust:
    """Let a CI system's tokens in. Rules for GitHub must pin `repository_id`, a number."""
    try:
        allow_loopback = services.settings.allow_loopback_webhooks
        check_rule(wanted.issuer, wanted.claims, allow_loopback=allow_loopback)
    except InvalidError as error:
        place = ("body", *(error.location or ("issuer",)))
        raise InvalidError(error.message, code=error.code, location=place) from None
    rule = acting(services, request, principal).create_trust(
        wanted.tenant or principal.tenant,
        issuer=wanted.issuer,
        audience=wanted.audience,
        claims=wanted.claims,
        scopes=wanted.scopes,
    )
    response.headers["Location"] = f"/v1/trust/{rule.id}"
    return _view(rule)


@router.delete("/trust/{rule_id}", status_code=204, response_class=Response)
def delete_trust(rule_id: str, principal: Admin, request: Request, services: WithServices) -> None:
    """Let a CI system's tokens in no longer; the keys that were issued by the rule end with it."""
    acting(services, request, principal).delete_trust(rule_id)
    services.authenticator.forget()


@router.post("/token", response_model=Token, openapi_extra=TOKEN, responses={400: {"model": TokenError}})
async def create_token(request: Request, services: WithServices) -> Response:
    """A CI system's OpenID Connect token for a short-lived key (RFC 8693); no key is needed."""
    address = request.client.host if request.client else "unknown"
    try:
        wish = parse_wish(request.headers.get("content-type", ""), await request.body())
        issued = await exchange(services, services.issuers, wish, request.scope["request_id"])
    except RefusedError as refusal:
        services.authenticator.count_guess(address)
        headers = {**_NO_STORE, "Retry-After": "5"} if refusal.status == 503 else _NO_STORE
        body = TokenError(error=refusal.error, error_description=refusal.description)
        return Response(body.model_dump_json(), refusal.status, headers, "application/json")
    token = Token(
        access_token=issued.plain,
        issued_token_type=ACCESS_TOKEN,
        expires_in=issued.seconds,
        scope=" ".join(issued.scopes),
    )
    return Response(token.model_dump_json(), 200, _NO_STORE, "application/json")


@router.get("/audit", response_model=AuditPage)
def list_audit(
    _principal: Admin,
    request: Request,
    response: Response,
    services: WithServices,
    cursor: Annotated[str | None, Query(max_length=128)] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 50,
) -> AuditPage:
    """Who did what, when: every write, newest first. The next page is in Link and in next_cursor."""
    page = services.repository.list_audit(cursor=cursor, limit=limit)
    if page.next_cursor is not None:
        following = request.url.include_query_params(cursor=page.next_cursor)
        response.headers["Link"] = f'<{following.path}?{following.query}>; rel="next"'
    items = [
        AuditEntry(
            id=entry.id,
            time=rfc3339(entry.time),
            actor=entry.actor.as_json(),
            action=entry.action,
            object=entry.object,
            tenant=entry.tenant,
            request_id=entry.request_id,
        )
        for entry in page.items
    ]
    return AuditPage(items=items, next_cursor=page.next_cursor)


def _view(rule: TrustRule) -> Trust:
    return Trust(
        id=rule.id,
        issuer=rule.issuer,
        audience=rule.audience,
        claims=rule.claims,
        tenant=rule.tenant,
        scopes=sorted(rule.scopes),
        created_at=rfc3339(rule.created_at),
    )
