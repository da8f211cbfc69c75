"""What is wrong with a field, as a sentence for people in place of the validator's own words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic_core import ErrorDetails

from jobs.specs.spelling import unknown_field

#: What a list holds, where its name doesn't say it in the singular.
_ENTRIES = {
    **{"prompt_pairs": "pair", "control_pairs": "pair", "texts": "text", "prompts": "prompt"},
    **{"attributes": "attribute", "steps": "step", "gates": "gate", "layer_indices": "layer"},
    **{"layer_types": "component", "visualization_types": "kind of figure", "scopes": "scope"},
}
_NUMBERS = {1: "one", 2: "two"}
#: Names whose form is better said than shown as a pattern.
_FORMS = {
    "revision": "give the full commit, 40 hexadecimal digits in lower case",
    "id": "give the hub's name of a model, such as org/model",
    "dataset": "give the hub's name of a data set, such as org/data",
    "template": "write {attribute} where the words shall stand",
}
_NAME = "use letters, digits and . _ - only, beginning with a letter or digit, at most 128"
_TYPES = {
    "int_type": 'give a whole number (20, not "20" or 20.5)',
    "int_from_float": "give a whole number",
    "float_type": 'give a number (20, not "20")',
    "finite_number": "give a finite number",
    "bool_type": "give true or false",
    "string_type": "give a text in quotes",
    "list_type": "give a list: [ … ]",
    "dict_type": "give an object: { … }",
    "model_type": "give an object: { … }",
    "model_attributes_type": "give an object: { … }",
}
_BOUNDS = {
    "greater_than": ("gt", "give a number above {}"),
    "greater_than_equal": ("ge", "give {} or more"),
    "less_than": ("lt", "give a number below {}"),
    "less_than_equal": ("le", "give {} or less"),
}


def sentence(item: ErrorDetails, model: Any) -> str:
    """The sentence for one of pydantic's errors of `model` (a type, or a union of types)."""
    kind, ctx = item["type"], item.get("ctx", {})
    if kind == "extra_forbidden":
        return unknown_field(model, item["loc"])
    name = _field(item["loc"])
    found = _TYPES.get(kind) or _bound(kind, ctx) or _length(kind, name, ctx) or _choice(kind, name, ctx)
    return found or item["msg"].removeprefix("Value error, ")


def _bound(kind: str, ctx: Mapping[str, Any]) -> str | None:
    key, text = _BOUNDS.get(kind, ("", ""))
    return text.format(ctx[key]) if key else None


def _choice(kind: str, name: str, ctx: Mapping[str, Any]) -> str | None:
    """A sentence for a word that is missing, or isn't one of those that there are."""
    if kind == "missing":
        return f"{name} is missing"
    if kind in ("literal_error", "enum"):
        return f"give one of {str(ctx['expected']).replace(' or ', ', ')}"
    if kind == "union_tag_not_found":
        return f"say which it is: give {ctx['discriminator']}"
    if kind == "union_tag_invalid":
        return f"there is no {ctx['tag']!r}: give one of {ctx['expected_tags']}"
    return None


def _length(kind: str, name: str, ctx: Mapping[str, Any]) -> str | None:
    """A sentence for what is too short, too long or of another form; None for anything else."""
    if kind == "too_short":
        return f"give at least {_count(ctx['min_length'], _entry(name))}"
    if kind == "too_long":
        return f"give at most {_count(ctx['max_length'], _entry(name))}"
    if kind == "string_too_short":
        return "give a text, not an empty one" if ctx["min_length"] == 1 else None
    if kind == "string_too_long":
        return f"give at most {_count(ctx['max_length'], 'character')}"
    if kind == "string_pattern_mismatch":
        return _FORMS.get(name, _NAME if "A-Za-z0-9" in ctx["pattern"] else f"the form is {ctx['pattern']}")
    return None


def _field(loc: Sequence[str | int]) -> str:
    names = [part for part in loc if isinstance(part, str) and part.isidentifier()]
    return names[-1] if names else "the value"


def _entry(name: str) -> str:
    return _ENTRIES.get(name, "entry")


def _count(number: int, what: str) -> str:
    plural = what if number == 1 else f"{what[:-1]}ies" if what.endswith("entry") else f"{what}s"
    return f"{_NUMBERS.get(number, f'{number:,}')} {plural}"
