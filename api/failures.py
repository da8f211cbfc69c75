"""What the job side refuses, as HTTP: one place that knows both vocabularies."""

from __future__ import annotations

from collections.abc import Iterable

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import DataError, InterfaceError, OperationalError, TimeoutError as PoolTimeoutError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from api import problem
from api.dashboard.refusals import Handler, for_people
from api.problem import Problem
from jobs import errors
from jobs.database import is_disk_full

_STATUS: list[tuple[type[errors.JobsError], int]] = [
    (errors.NotFoundError, 404),
    (errors.ConflictError, 409),
    (errors.InvalidError, 422),
    (errors.NoWorkerError, 422),
    (errors.QuotaExceededError, 429),
    (errors.QueueFullError, 503),
    (errors.IdempotencyMismatchError, 422),
    (errors.IdempotencyInFlightError, 409),
    (errors.LinkInvalidError, 403),
    (errors.LinkExpiredError, 410),
    (errors.StorageFullError, 503),
    (errors.ArtifactMissingError, 404),
    (errors.StorageError, 503),
]


def problem_for(error: errors.JobsError) -> Problem:
    """A refusal of the job side as a problem."""
    status = next((status for kind, status in _STATUS if isinstance(error, kind)), 500)
    fields = []
    if isinstance(error, errors.InvalidError) and (place := _place(error)):
        fields = [problem.field_error(place, error.message, error.code)]
    return Problem(status, error.code, error.message, errors=fields, headers=_headers(error))


def _place(error: errors.InvalidError) -> list[str | int]:
    """Where the fault is in the request; what the job side knows of is the body."""
    if error.code == "cursor_invalid":
        return ["query", "cursor"]
    place = list(error.location)
    return place if not place or place[0] in ("body", "query", "header", "path") else ["body", *place]


def _headers(error: errors.JobsError) -> dict[str, str]:
    if isinstance(error, errors.QuotaExceededError):
        return {
            "Retry-After": str(error.retry_after),
            "RateLimit-Policy": f'"{error.policy}";q={error.limit}',
            "RateLimit": f'"{error.policy}";r=0;t={error.retry_after}',
        }
    if isinstance(error, errors.QueueFullError | errors.NoWorkerError):
        return {"Retry-After": str(error.retry_after)}
    if isinstance(error, errors.StorageFullError):
        return {"Retry-After": "60"}
    if isinstance(error, errors.IdempotencyInFlightError):
        return {"Retry-After": "1"}
    return {}


async def _on_jobs_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, errors.JobsError):
        raise error
    return problem.problem_response(problem_for(error), problem.request_id_of(request))


async def _on_database_error(request: Request, error: Exception) -> Response:
    if is_disk_full(error):
        full = errors.StorageFullError("The disk of the database is full: nothing can be stored there.")
        return problem.problem_response(problem_for(full), problem.request_id_of(request))
    detail = "The database does not answer at the moment."
    unavailable = Problem(503, "database_unavailable", detail, headers={"Retry-After": "5"})
    return problem.problem_response(unavailable, problem.request_id_of(request))


async def _on_left(_request: Request, _error: Exception) -> Response:
    return Response(status_code=499)  # the caller left while the body was being read; nobody gets this


async def _on_data_error(request: Request, _error: Exception) -> Response:
    detail = "The request holds a value that cannot be stored, such as a NUL character."
    return problem.problem_response(Problem(422, "validation_failed", detail), problem.request_id_of(request))


async def _on_http_exception(request: Request, error: Exception) -> Response:
    """The framework names only the methods of the first route of a path; all of them are wanted."""
    if isinstance(error, HTTPException) and error.status_code == 405:
        allow = ", ".join(sorted(allowed_methods(request.app.routes, request.url.path)))
        error = HTTPException(405, headers={"Allow": allow})
    return await problem.on_http_exception(request, error)


def allowed_methods(routes: Iterable[BaseRoute], path: str) -> set[str]:
    """The methods of every route that a path matches."""
    found: set[str] = set()
    for route in routes:
        if isinstance(route, Route):
            if route.path_regex.match(path):
                found |= route.methods or set()
        else:
            inner = getattr(getattr(route, "original_router", route), "routes", None)
            found |= allowed_methods(inner or (), path)
    return found


def install(app: FastAPI) -> None:
    """Make every failure of the app a problem document, or a page for who asked for one."""
    handlers: list[tuple[type[Exception], Handler]] = [
        (Problem, problem.on_problem),
        (HTTPException, _on_http_exception),
        (RequestValidationError, problem.on_validation_error),
        (errors.JobsError, _on_jobs_error),
        (ClientDisconnect, _on_left),
        (DataError, _on_data_error),
        (OperationalError, _on_database_error),
        (InterfaceError, _on_database_error),
        (PoolTimeoutError, _on_database_error),
    ]
    for kind, handler in handlers:
        app.exception_handler(kind)(for_people(handler))
