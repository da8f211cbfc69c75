"""Which field was meant: the fields that models have at a place, and the nearest of their names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

SHOWN = 12


def unknown_field(model: Any, loc: Sequence[str | int]) -> str:
    """A sentence for a field at `loc` (as pydantic gives it) that `model`, a type or union, doesn't have."""
    name = str(loc[-1])
    known = sorted(fields_at(model, loc[:-1]))
    near = get_close_matches(name, known, 1)
    if near:
        return f"there is no field {name!r} here: did you mean {near[0]!r}?"
    if name in fields_at(model, (*loc[:-1], "spec")):
        return f"there is no field {name!r} here: it belongs into spec"
    if not known:
        return f"there is no field {name!r} here"
    more = f" and {len(known) - SHOWN} more (/openapi.json)" if len(known) > SHOWN else ""
    return f"there is no field {name!r} here: there are {', '.join(known[:SHOWN])}{more}"


def fields_at(model: Any, loc: Sequence[str | int]) -> set[str]:
    """The names of all fields that may stand at a place."""
    candidates = list(_expanded(model))
    for part in loc:
        candidates = [found for candidate in candidates for found in _into(candidate, part)]
    models = (candidate for candidate in candidates if _is_model(candidate))
    return {name for found in models for name in found.model_fields}


def _into(candidate: Any, part: str | int) -> Iterator[Any]:
    """What lies behind one part of a location: a field's type, an item's type, or a member of a union."""
    if isinstance(part, int):
        if get_origin(candidate) is list:
            yield from _expanded(get_args(candidate)[0])
        return
    if not _is_model(candidate):
        if get_origin(candidate) is list:
            yield candidate  # pydantic names this member of a union, too
        return
    if part in candidate.model_fields:
        yield from _expanded(candidate.model_fields[part].annotation)
    elif part == candidate.__name__ or part in _tags(candidate):
        yield candidate


def _tags(model: type[BaseModel]) -> set[object]:
    """The words by which a member of a union is told from the others."""
    literals = (field.annotation for field in model.model_fields.values())
    return {word for kind in literals if get_origin(kind) is Literal for word in get_args(kind)}


def _expanded(kind: Any) -> Iterator[Any]:
    """The members of a union, whatever it is wrapped in."""
    if get_origin(kind) is Annotated:
        yield from _expanded(get_args(kind)[0])
    elif get_origin(kind) in (Union, UnionType):
        for member in get_args(kind):
            yield from _expanded(member)
    else:
        yield kind


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)
