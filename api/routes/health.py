"""Whether the service lives, whether it is ready, and its numbers."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response

from api import models
from api.auth import Reader
from api.context import WithServices
from api.monitoring.figures import figures
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
    """Prometheus metrics: jobs, attempts and verdicts, waits and run times, queues, workers, room, build.

    They count the jobs of the key's tenant; for an admin key those of all tenants, and HTTP requests too.
    """
    tenant = None if principal.admin else principal.tenant
    text = render(
        gauges(services, tenant),
        services.metrics if principal.admin else None,
        figures(services, tenant),
    )
    return Response(text, media_type=METRICS_MEDIA_TYPE)
