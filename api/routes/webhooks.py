"""Webhooks of a tenant, and what was sent to them."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from api import models
from api.auth import Reader, Writer
from api.body import body_of
from api.context import WithServices, acting
from api.operations import body_schema
from api.problem import field_error, invalid
from api.views import delivery_view, webhook_view
from jobs.errors import InvalidError
from jobs.webhooks import EVENT_TYPES, check_webhook_url

router = APIRouter(prefix="/v1/webhooks", tags=["webhooks"])
WebhookBody = Annotated[models.WebhookRequest, Depends(body_of(models.WebhookRequest))]
RedeliverBody = Annotated[models.RedeliverRequest, Depends(body_of(models.RedeliverRequest, optional=True))]


@router.post(
    "",
    status_code=201,
    response_model=models.WebhookCreated,
    openapi_extra=body_schema(models.WebhookRequest),
)
def create_webhook(
    principal: Writer, wanted: WebhookBody, request: Request, response: Response, services: WithServices
) -> models.WebhookCreated:
    """Tell a URL of what happens to the tenant's jobs; the secret of the signatures is shown this once."""
    try:
        check_webhook_url(wanted.url, allow_loopback=services.settings.allow_loopback_webhooks)
    except InvalidError as error:
        raise InvalidError(error.message, code=error.code, location=("body", "url")) from None
    unknown = sorted(set(wanted.events) - set(EVENT_TYPES))
    if unknown:
        raise invalid([field_error(["body", "events"], f"Known are {', '.join(EVENT_TYPES)}.", "enum")])
    events = sorted(set(wanted.events))
    webhook = acting(services, request, principal).create_webhook(principal.tenant, wanted.url, events)
    response.headers["Location"] = f"/v1/webhooks/{webhook.id}"
    response.headers["Cache-Control"] = "no-store"
    return models.WebhookCreated(**webhook_view(webhook).model_dump(), secret=webhook.secret)


@router.get("", response_model=models.WebhookList)
def list_webhooks(principal: Reader, services: WithServices) -> models.WebhookList:
    """The tenant's webhooks."""
    found = services.repository.list_webhooks(principal.tenant)
    return models.WebhookList(items=[webhook_view(webhook) for webhook in found])


@router.delete("/{webhook_id}", status_code=204, response_class=Response)
def delete_webhook(webhook_id: str, request: Request, principal: Writer, services: WithServices) -> None:
    """Forget a webhook and its deliveries."""
    acting(services, request, principal).delete_webhook(webhook_id, principal.tenant)


@router.get("/{webhook_id}/deliveries", response_model=models.DeliveryList)
def list_deliveries(webhook_id: str, principal: Reader, services: WithServices) -> models.DeliveryList:
    """The latest deliveries, newest first."""
    found = services.repository.list_deliveries(webhook_id, principal.tenant)
    return models.DeliveryList(items=[delivery_view(delivery) for delivery in found])


@router.post(
    "/{webhook_id}/redeliver",
    status_code=202,
    response_model=models.Redelivered,
    openapi_extra=body_schema(models.RedeliverRequest, required=False),
)
def redeliver(
    principal: Writer, webhook_id: str, wanted: RedeliverBody, services: WithServices
) -> models.Redelivered:
    """Send one delivery again, or all that failed when none is named."""
    count = services.repository.redeliver(webhook_id, principal.tenant, wanted.delivery_id)
    return models.Redelivered(scheduled=count)


@router.post(
    "/{webhook_id}/deliveries/{delivery_id}/redeliver", status_code=202, response_model=models.Redelivered
)
def redeliver_one(
    webhook_id: str, delivery_id: str, principal: Writer, services: WithServices
) -> models.Redelivered:
    """Send one delivery again."""
    count = services.repository.redeliver(webhook_id, principal.tenant, delivery_id)
    return models.Redelivered(scheduled=count)
