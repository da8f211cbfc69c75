"""Errors as RFC 9457 problem documents (`application/problem+json`): one form for every failure.

A problem carries a stable `code` for scripts to branch on; `detail` is for people and never holds a stack
trace, a file path or a secret.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from http import HTTPStatus

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.responses import Response

MEDIA_TYPE = "application/problem+json"
_CODES = {
    400: "bad_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    406: "not_acceptable",
    413: "body_too_large",
    422: "validation_failed",
    429: "rate_limited",
    500: "internal_error",
    503: "unavailable",
}


class FieldError(BaseModel):
    """One thing that is wrong with the request, and where."""

    loc: list[str | int] = Field(description="where it is: body, query, path or header, then the field")
    pointer: str | None = Field(default=None, description="JSON pointer into the body")
    detail: str
    type: str


class ProblemDocument(BaseModel):
    """RFC 9457 problem details, with a code for scripts, the faulty fields and the request's id."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    errors: list[FieldError] = []
    request_id: str | None = None


class Problem(Exception):  # noqa: N818 - named after RFC 9457, not an error of this program
    """An error to be answered as a problem document.

    Args:
        status: the HTTP status.
        code: the stable word that scripts branch on.
        detail: a sentence for people.
        errors: faulty fields, each `{"loc", "detail", "type"}`.
        headers: extra response headers, such as Retry-After.
        members: extension members of the document (RFC 9457, section 3.2).
    """

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        errors: Sequence[FieldError] = (),
        headers: Mapping[str, str] | None = None,
        members: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(f"{status} {code}: {detail}")
        self.status, self.code, self.detail = status, code, detail
        self.errors, self.headers, self.members = list(errors), dict(headers or {}), dict(members or {})


def field_error(loc: Sequence[str | int], detail: str, kind: str) -> FieldError:
    """A `FieldError`; a location in the body gets a JSON pointer as well (RFC 6901)."""
    parts = list(loc)
    pointer = None
    if parts and parts[0] == "body":
        pointer = "".join("/" + str(p).replace("~", "~0").replace("/", "~1") for p in parts[1:])
    return FieldError(loc=parts, pointer=pointer, detail=detail, type=kind)


def not_found(what: str = "resource") -> Problem:
    """404; also the answer for what belongs to another tenant, so that ids can't be probed."""
    return Problem(404, "not_found", f"There is no such {what}.")


def problem_response(problem: Problem, request_id: str | None) -> Response:
    """Render a problem as an HTTP response."""
    document = {
        "type": f"urn:optipfair:problem:{problem.code}",
        "title": _title(problem.status),
        "status": problem.status,
        "detail": problem.detail,
        "code": problem.code,
        "errors": [error.model_dump(exclude_none=True) for error in problem.errors],
        "request_id": request_id,
        **problem.members,
    }
    # ensure_ascii keeps a lone surrogate from a hostile request from breaking the encoder
    return Response(json.dumps(document), problem.status, problem.headers, MEDIA_TYPE)


def _title(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Error"


def request_id_of(request: Request) -> str | None:
    """The id that the outermost middleware gave this request."""
    found = request.scope.get("request_id")
    return found if isinstance(found, str) else None


async def on_problem(request: Request, error: Exception) -> Response:
    """Exception handler for `Problem`."""
    if not isinstance(error, Problem):
        raise error
    return problem_response(error, request_id_of(request))


async def on_http_exception(request: Request, error: Exception) -> Response:
    """Exception handler for what the framework itself refuses: unknown paths, wrong methods."""
    if not isinstance(error, HTTPException):
        raise error
    code = _CODES.get(error.status_code, "error")
    problem = Problem(error.status_code, code, _detail(error), headers=error.headers)
    return problem_response(problem, request_id_of(request))


def _detail(error: HTTPException) -> str:
    if error.status_code == 404:
        return "There is no such resource."
    if error.status_code == 405:
        return "This resource does not answer that method; see the Allow header."
    return _title(error.status_code)


async def on_validation_error(request: Request, error: Exception) -> Response:
    """Exception handler for requests that do not fit their schema: 422 naming each field."""
    if not isinstance(error, RequestValidationError):
        raise error
    # `input` and `ctx` are left out: they repeat what was sent, which may be a secret
    errors = [field_error(list(item["loc"]), item["msg"], item["type"]) for item in error.errors()[:50]]
    return problem_response(invalid(errors), request_id_of(request))


def invalid(errors: Sequence[FieldError]) -> Problem:
    """422 for a request whose fields are wrong; the detail quotes the first one."""
    first = errors[0] if errors else None
    where = ".".join(str(part) for part in first.loc) if first else "request"
    detail = f"{where}: {first.detail}" if first else "The request does not fit its schema."
    return Problem(422, "validation_failed", detail, errors=errors)
