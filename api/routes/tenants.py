"""Tenants and their shares: for `admin` alone."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request

from api import models
from api.auth import Admin
from api.body import body_of
from api.context import WithServices, acting
from api.operations import body_schema
from jobs.repository.whole.shares import Share

router = APIRouter(prefix="/v1/tenants", tags=["keys"])
TenantBody = Annotated[models.TenantRequest, Depends(body_of(models.TenantRequest))]


@router.get("", response_model=models.TenantList)
def list_tenants(_principal: Admin, services: WithServices) -> models.TenantList:
    """Every tenant with its weight, what it runs, and the engine seconds that it used in the last hour."""
    return models.TenantList(items=[_view(share) for share in services.repository.list_tenants()])


@router.patch("/{name}", response_model=models.Tenant, openapi_extra=body_schema(models.TenantRequest))
def change_tenant(
    name: str, principal: Admin, wanted: TenantBody, request: Request, services: WithServices
) -> models.Tenant:
    """Change a tenant's weight: with twice the weight it runs twice as many jobs while others wait too."""
    return _view(acting(services, request, principal).set_weight(name, wanted.weight))


def _view(share: Share) -> models.Tenant:
    return models.Tenant(
        name=share.tenant,
        weight=share.weight,
        running=share.running,
        queued=share.queued,
        engine_seconds_last_hour=round(share.seconds, 3),
    )
