"""API keys and tenants: for `admin` alone, which is global."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from api import models
from api.auth import Admin
from api.body import body_of
from api.context import WithServices, acting
from api.operations import body_schema
from api.problem import field_error, invalid
from api.views import key_view, rfc3339_or_none
from jobs.signing.keys import generate_key
from jobs.times import from_rfc3339, rfc3339

router = APIRouter(prefix="/v1/keys", tags=["keys"])
KeyBody = Annotated[models.KeyRequest, Depends(body_of(models.KeyRequest))]


@router.get("", response_model=models.KeyList)
def list_keys(principal: Admin, services: WithServices) -> models.KeyList:
    """Every key of every tenant, without the secrets."""
    found = services.repository.list_keys(principal.sees)
    return models.KeyList(items=[key_view(key) for key in found])


@router.post(
    "", status_code=201, response_model=models.KeyCreated, openapi_extra=body_schema(models.KeyRequest)
)
def create_key(
    principal: Admin, wanted: KeyBody, request: Request, response: Response, services: WithServices
) -> models.KeyCreated:
    """A new key, shown this once. A tenant that is named for the first time is made with it."""
    tenant = wanted.tenant or principal.tenant
    expires_at = _expiry(wanted.expires_at)
    fresh = generate_key(services.secrets)
    key = acting(services, request, principal).create_key(
        tenant,
        key_hash=fresh.hash,
        hint=fresh.hint,
        scopes=sorted(set(wanted.scopes)),
        name=wanted.name,
        expires_at=expires_at,
    )
    response.headers["Location"] = f"/v1/keys/{key.id}"
    response.headers["Cache-Control"] = "no-store"
    return models.KeyCreated(
        id=key.id,
        key=fresh.plain,
        tenant=key.tenant,
        scopes=sorted(key.scopes),
        name=key.name,
        created_at=rfc3339(key.created_at),
        expires_at=rfc3339_or_none(key.expires_at),
        webhook_secret=services.repository.webhook_secret(key.tenant),
    )


@router.delete("/{key_id}", status_code=204, response_class=Response)
def revoke_key(key_id: str, request: Request, principal: Admin, services: WithServices) -> None:
    """Revoke a key; a repeat is safe."""
    acting(services, request, principal).revoke_key(key_id, principal.sees)
    services.authenticator.forget()


def _expiry(text: str | None) -> int | None:
    try:
        return None if text is None else from_rfc3339(text)
    except ValueError as fault:
        error = field_error(["body", "expires_at"], f"Not an RFC 3339 time: {fault}.", "time")
        raise invalid([error]) from None
