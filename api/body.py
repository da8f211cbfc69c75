"""JSON bodies, parsed strictly: no NaN, no lone surrogates, no conversions, and every error with its place.

FastAPI would parse with `json.loads`, which takes NaN and half of a surrogate pair; the first breaks
comparisons and the second the database's encoder.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Request
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, from_json

from api.context import Services, WithServices
from api.problem import FieldError, Problem, field_error, invalid
from api.sentences import sentence
from jobs.errors import InvalidError
from jobs.specs import AnyRequest, parse_request

M = TypeVar("M", bound=BaseModel)
MAX_JSON_DEPTH = 32
# possessive, and an end of text ends a string too: tried again from every quote of an unterminated one, it
# would take quadratic time, before any key is checked
_JSON_STRING = re.compile(rb'"(?:[^"\\]++|\\.?)*+"?', re.DOTALL)
_NOT_BRACKET = re.compile(rb"[^\[\]{}]+")


async def json_body(request: Request) -> Any:
    """The parsed body.

    Raises:
        Problem: 422 when it is not JSON (RFC 8259), or nested too deeply.
    """
    raw = await request.body()
    if json_depth(raw) > MAX_JSON_DEPTH:
        detail = f"JSON may nest {MAX_JSON_DEPTH} levels deep, no more."
        raise invalid([field_error(["body"], detail, "json_too_deep")])
    try:
        return from_json(raw, allow_inf_nan=False)
    except ValueError as error:
        reason = "The body is empty; JSON is expected." if not raw else f"This is not JSON: {error}"
        raise invalid([field_error(["body"], reason, "json_invalid")]) from None


def json_depth(body: bytes, limit: int = MAX_JSON_DEPTH) -> int:
    """How deeply the brackets of a JSON text nest; counting stops one above `limit`."""
    depth = deepest = 0
    for char in _NOT_BRACKET.sub(b"", _JSON_STRING.sub(b"", body)):
        if char in b"[{":
            depth += 1
            deepest = max(deepest, depth)
            if deepest > limit:
                break
        else:
            depth -= 1
    return deepest


def body_of(model: type[M], *, optional: bool = False) -> Callable[[Request], Awaitable[M]]:
    """A dependency that gives the body as `model`; an empty body counts as `{}` when `optional`."""

    async def read(request: Request) -> M:
        body = {} if optional and not await request.body() else await json_body(request)
        try:
            return model.model_validate(body)
        except ValidationError as error:
            raise problem_of(error, body, model) from None

    return read


def job_request(body: Annotated[Any, Depends(json_body)], services: WithServices) -> tuple[AnyRequest, Any]:
    """The body of `POST /v1/jobs` as a request, and as the JSON that it came as (for Idempotency-Key)."""
    try:
        return parse_request(body), body
    except ValidationError as error:
        _check_hub_is_allowed(services, error, body)
        raise problem_of(error, body, AnyRequest) from None


def _check_hub_is_allowed(services: Services, error: ValidationError, body: Any) -> None:
    """Say that the hub is not allowed before anything that is wrong with a reference to it.

    Whoever looks up a revision first would learn of that only then.
    """
    for item in error.errors(include_url=False, include_input=False, include_context=False):
        here, place = body, []
        for part in in_body(item["loc"], body):
            here = here[part] if _has(here, part) else None
            place.append(part)
            if not isinstance(here, dict) or here.get("source") != "hub":
                continue
            workers = services.repository.known_workers()
            if workers and not any(worker.allow_hub for worker in workers):
                from jobs.admission.checks import HUB_NOT_ALLOWED

                raise InvalidError(HUB_NOT_ALLOWED, code="hub_not_allowed", location=tuple(place))


def problem_of(error: ValidationError, body: Any, model: Any) -> Problem:
    """422 with the location of each fault in the body as it was sent; `model` is what it should have been."""
    items = error.errors(include_url=False, include_input=False)[:50]
    return invalid([_one(item, body, model) for item in items])


def _one(item: ErrorDetails, body: Any, model: Any) -> FieldError:
    place = ["body", *in_body(item["loc"], body)]
    if item["type"].startswith("union_tag_"):  # which member is meant is told by a field, such as `kind`
        place.append(str(item.get("ctx", {}).get("discriminator", "")).strip("'"))
    return field_error(place, sentence(item, model), item["type"])


def in_body(loc: tuple[int | str, ...], body: Any) -> list[str | int]:
    """A pydantic location without the names of union members, which are not in what the user sent."""
    place: list[str | int] = []
    here = body
    for position, part in enumerate(loc):
        if _has(here, part):
            here = here[part]
            place.append(part)
        elif position == len(loc) - 1 and isinstance(here, dict) and str(part).isidentifier():
            place.append(part)  # a field that is missing
    return place


def _has(container: Any, part: int | str) -> bool:
    if isinstance(container, dict):
        return part in container
    return isinstance(container, list) and isinstance(part, int) and part < len(container)
