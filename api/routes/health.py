"""Whether the service lives, whether it is ready, and its numbers."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response

from api import models
from api.auth import Reader
from api.context import WithServices
from api.observability import METRICS_MEDIA_TYPE, render
from api.readiness import OK, check_all, gauges

router = APIRouter(tags=["operation"])


@router.get("/livez", response_model=models.Live)
async def livez() -> models.Live:
    """This process answers. Nothing else is looked at."""
    return models.Live()


@router.get("/readyz", response_model=models.Ready, responses={503: {"model": models.Ready}})
def readyz(services: WithServices) -> JSONResponse:
    """Whether a job would run: database, migrations, a worker that takes jobs, disk and broker, by name."""
    checks = check_all(services)
    ready = all(value == OK for value in checks.values())
    body = {"status": "ready" if ready else "not_ready", "checks": checks}
    return JSONResponse(body, 200 if ready else 503, {"Cache-Control": "no-store"})


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
def metrics(principal: Reader, services: WithServices) -> Response:
    """Prometheus metrics: jobs by state and kind, attempts, the age of the queues, the workers.

    They count the jobs of the key's tenant; for an admin key those of all tenants, and HTTP requests too.
    """
    if principal.admin:
        return Response(render(gauges(services, None), services.metrics), media_type=METRICS_MEDIA_TYPE)
    return Response(render(gauges(services, principal.tenant)), media_type=METRICS_MEDIA_TYPE)
