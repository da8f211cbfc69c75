"""What a job's attempts said, as text and as a stream that follows them."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import PlainTextResponse, StreamingResponse

from api.auth import Reader
from api.context import WithServices
from api.operations import GET_LOGS
from api.problem import Problem
from api.waiting.logs import from_id, log_stream, numbered

router = APIRouter(prefix="/v1/jobs/{job_id}", tags=["results"])
_MOST_ATTEMPTS = 2**31 - 1
_MOST_LINES = 2**31 - 1


@router.get(
    "/logs",
    response_class=PlainTextResponse,
    responses={200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}},
    openapi_extra=GET_LOGS,
)
async def get_logs(
    job_id: str,
    request: Request,
    principal: Reader,
    services: WithServices,
    attempt: Annotated[int | None, Query(ge=1, le=_MOST_ATTEMPTS)] = None,
    tail: Annotated[int | None, Query(ge=0, le=_MOST_LINES, description="at most so many lines")] = None,
) -> Any:
    """What each attempt said, the oldest first; with `Accept: text/event-stream` to the end of the job."""
    job = await services.quickly(services.repository.get_job, job_id, principal.sees)
    logs = await services.quickly(services.repository.list_logs, job.id, attempt)
    if attempt is not None and not logs:
        raise Problem(404, "attempt_not_found", f"The job has no attempt {attempt}.")
    if "text/event-stream" in request.headers.get("accept", ""):
        after = from_id(request.headers.get("last-event-id"))
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        stream = log_stream(services, job, attempt, after, tail)
        return StreamingResponse(stream, 200, headers, "text/event-stream")
    lines = [line for log in logs for _, line in numbered(log)]
    if tail is not None:
        lines = lines[max(0, len(lines) - tail) :]
    return PlainTextResponse("".join(f"{line}\n" for line in lines))
