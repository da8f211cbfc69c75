"""The files that a job made, and signed links to them."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response
from starlette.concurrency import run_in_threadpool

from api import models
from api.auth import Reader
from api.body import body_of
from api.context import WithServices
from api.downloads.linking import make_link
from api.downloads.serving import artifact_response
from api.operations import BYTES_RESPONSES, GET_BYTES, body_schema
from api.routes.results import check_kept, with_results
from api.views import artifact_view

router = APIRouter(prefix="/v1/jobs/{job_id}/artifacts", tags=["artifacts"])
LinkBody = Annotated[models.LinkRequest, Depends(body_of(models.LinkRequest, optional=True))]


@router.get("", response_model=list[models.Artifact])
def list_artifacts(job_id: str, principal: Reader, services: WithServices) -> list[models.Artifact]:
    """The published files: of a job that succeeded, or of a pipeline's finished steps; as long as kept."""
    services.repository.get_job(job_id, principal.sees)
    return [artifact_view(job_id, artifact) for artifact in services.repository.list_artifacts(job_id)]


@router.head("/{name}", response_class=Response, responses=BYTES_RESPONSES, openapi_extra=GET_BYTES)
@router.get("/{name}", response_class=Response, responses=BYTES_RESPONSES, openapi_extra=GET_BYTES)
async def get_artifact(
    job_id: str, name: str, request: Request, principal: Reader, services: WithServices
) -> Response:
    """The bytes of one file for the holder of a key (`*`: one tar of all), with Range as in a download."""
    job = await run_in_threadpool(services.repository.get_job, job_id, principal.sees)
    check_kept(job)
    return await artifact_response(services, request, job, name)


@router.post(
    "/{name}/links",
    status_code=201,
    response_model=models.Link,
    openapi_extra=body_schema(models.LinkRequest, required=False),
)
def create_link(
    principal: Reader, job_id: str, name: str, wanted: LinkBody, response: Response, services: WithServices
) -> models.Link:
    """A URL that works without a key until it expires; `*` is one uncompressed tar of all files."""
    job = with_results(services, job_id, principal)
    check_kept(job)
    response.headers["Cache-Control"] = "no-store"
    return make_link(services, job, name, wanted.ttl_seconds)
