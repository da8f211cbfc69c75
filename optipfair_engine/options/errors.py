"""The engine's errors for what a model of options refuses: the one translation of pydantic's errors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from optipfair_engine.errors import InvalidOptionError
from optipfair_engine.options.words import EXPANSION_DIVISORS

if TYPE_CHECKING:
    from pydantic import ValidationError
    from pydantic_core import ErrorDetails

#: Fields that the engine's texts call by another name.
_NAMES = {
    "dynamic.keep_percentage": "keep_percentage",
    "fairness.weight": "The fairness weight",
    "healing.max_seconds": "healing_seconds",
    "reconstruction.max_seconds": "reconstruction_seconds",
    "search.max_seconds": "search_seconds",
}
#: What is wrong with the parts of a field that is a model itself.
_PARTS = {"missing": "needs", "too_short": "needs", "extra_forbidden": "has no"}
_BOUNDS = {
    "greater_than": ("gt", "above"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "below"),
    "less_than_equal": ("le", "at most"),
}


class ContradictionError(ValueError):
    """Options that don't go together, worded for a job; ``guide``: as the engine's own calls say it."""

    def __init__(self, text: str, guide: str | None = None) -> None:
        super().__init__(text)
        self.guide = text if guide is None else guide


@contextmanager
def engines_errors() -> Iterator[None]:
    """Contradictions of options as the engine's ``InvalidOptionError``, in the words of its calls."""
    try:
        yield
    except ContradictionError as error:
        raise InvalidOptionError(error.guide) from None


def explained(error: ValidationError, model: str) -> Exception:
    """The first thing that is wrong, as the error that the engine's callers know."""
    errors = error.errors(include_url=False)
    found = errors[0]
    place = [str(part) for part in found["loc"]]
    if place[:1] == ["layer_indices"]:
        kind = type(found["input"]).__name__
        return TypeError(f"layer_indices must be a list, got {kind}")
    if found["type"] == "extra_forbidden" and len(place) == 1:
        return TypeError(f"{model} has no option {place[0]!r}")
    cause = found.get("ctx", {}).get("error")
    if isinstance(cause, ContradictionError):
        return InvalidOptionError(cause.guide)
    if found["type"] == "literal_error" and isinstance(found["loc"][-1], int):
        return InvalidOptionError(_list(errors, place[0]))
    return InvalidOptionError(_text(found, ".".join(place)))


def _list(errors: Sequence[ErrorDetails], name: str) -> str:
    """All wrong words of a list."""
    wrong = sorted({str(found["input"]) for found in errors if found["loc"][0] == name})
    return f"{name} must be among {_choices(errors[0])}; got {', '.join(wrong)}"


def _text(found: ErrorDetails, name: str) -> str:
    """One sentence that says what would be right."""
    kind, value = found["type"], found["input"]
    label = _NAMES.get(name, name)
    if kind == "literal_error":
        return _choice(found, name)
    if kind in _BOUNDS or kind == "finite_number":
        return f"{label} must be {_bound(kind, name, found.get('ctx', {}))}, got {value}"
    if kind in ("float_type", "int_type"):
        right = "a positive integer" if isinstance(value, float) else f"a number, got {value!r}"
        return f"{label} must be {right}"
    if kind in _PARTS:
        return f"{found['loc'][0]} {_PARTS[kind]} {found['loc'][-1]}"
    return f"{label}: {found['msg']}"


def _choice(found: ErrorDetails, name: str) -> str:
    if name == "expansion_divisor":
        return f"{name} must be one of {list(EXPANSION_DIVISORS)} or None. Got: {found['input']}"
    return f"{name} must be one of {_choices(found)}; got {found['input']!r}"


def _choices(found: ErrorDetails) -> str:
    return str(found["ctx"]["expected"]).replace("'", "").replace(" or ", ", ")


def _bound(kind: str, name: str, context: Mapping[str, Any]) -> str:
    """What must hold of a number: of a percentage both bounds, otherwise the one that was passed."""
    if name == "fairness.weight":
        return "at least 0 and finite"
    if name.endswith("percentage"):
        return f"{'above' if name.startswith(('depth', 'dynamic')) else 'at least'} 0 and below 100"
    if kind == "finite_number":
        return "a finite number"
    key, word = _BOUNDS[kind]
    return "above 0" if (key, context[key]) == ("ge", 1) else f"{word} {context[key]:g}"
