"""What all options are made of: strict models, and what a field says of itself beside its type and help."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from numbers import Integral
from types import UnionType
from typing import Annotated, Any, Literal, Self, SupportsFloat, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from optipfair_engine.options.docstrings import docstrings_of
from optipfair_engine.options.errors import explained

Finite = Annotated[float, Field(allow_inf_nan=False)]
Percentage = Annotated[Finite, Field(ge=0, lt=100)]
Count = Annotated[int, Field(ge=1, lt=2**63)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]


#: What can be iterated over, but is a value as it is.
_WHOLE = (str, bytes, list, tuple, Mapping, BaseModel)


@dataclass(frozen=True)
class About:
    """What a field's type doesn't say: who reads it, and how the command line presents it.

    Attributes:
        panel: the group of the command's help that the option stands in.
        types: the pruning types that read the field; with any other it must be left at its default.
        neutral: values that mean the same as the default where the field isn't read.
        in_memory: whether ``prune_model`` reads it; if not, it is about checkpoints and jobs.
        flag: the option's name on the command line, where that isn't the field's.
    """

    panel: str = "Running"
    types: tuple[str, ...] | None = None
    neutral: tuple[object, ...] = ()
    in_memory: bool = True
    flag: str | None = None


class Strict(BaseModel):
    """No unknown field, no conversion between types, no change after validation.

    What checks values is built when the first is checked: most processes never use most models. A field's
    description is the docstring behind it.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, defer_build=True)

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        """Give its own fields their descriptions."""
        for name, text in docstrings_of(cls).items():
            field = cls.model_fields.get(name)
            if field is not None and field.description is None:
                field.description = text


class EngineOptions(Strict):
    """A mixin for models that the engine's callers make: their errors are the engine's own.

    Numbers of NumPy and torch, which strict models refuse, are welcome.
    """

    def __init__(self, **given: Any) -> None:
        """Check the options.

        Raises:
            InvalidOptionError: a value out of range, or options that contradict each other.
            TypeError: a name that is no option, or ``layer_indices`` that can't be a list.
        """
        fields = type(self).model_fields
        plain = {name: _plain(value, fields.get(name)) for name, value in given.items()}
        try:
            super().__init__(**plain)
        except ValidationError as error:
            raise explained(error, type(self).__name__) from None

    def changed(self, **changes: Any) -> Self:
        """These options with other values in some fields, checked anew."""
        return type(self)(**{**dict(self), **changes})


def about(field: FieldInfo) -> About:
    """What a field says of itself."""
    return next((item for item in field.metadata if isinstance(item, About)), About())


def value_type(field: FieldInfo) -> Any:
    """The type of a field's value, without ``None`` and without bounds."""
    found = field.annotation
    if get_origin(found) in (Union, UnionType):
        found = next(part for part in get_args(found) if part is not type(None))
    while get_origin(found) is Annotated:
        found = get_args(found)[0]
    return found


def again(model: type[BaseModel], name: str, **changes: Any) -> Any:
    """A model's field for a subclass that narrows its type, with the help, default and notes of the original.

    ``changes``: another ``default``.
    """
    field = model.model_fields[name]
    said = {"description": field.description} | changes
    if field.default_factory is not None:
        said.setdefault("default_factory", field.default_factory)
    elif not field.is_required():
        said.setdefault("default", field.default)
    found: Any = Field(**said)
    found.metadata.append(about(field))
    return found


def _plain(value: object, field: FieldInfo | None) -> object:
    """A scalar of NumPy, torch or ``decimal`` as Python's own; any iterable of layers as a tuple."""
    if getattr(value, "ndim", None) == 0:
        value = value.item()  # type: ignore[attr-defined]
    if field is not None and value_type(field) in (int, float) and not isinstance(value, bool | str):
        if isinstance(value, Integral):
            return int(value)
        if isinstance(value, SupportsFloat):
            number = float(value)
            return int(number) if value_type(field) is int and number.is_integer() else number
    if isinstance(value, float) and field is not None and get_origin(value_type(field)) is Literal:
        return str(value)  # 64.0 equals the 64 of a choice, but is no whole number: as a text it is refused
    if isinstance(value, Iterable) and not isinstance(value, _WHOLE):
        return tuple(value)  # a generator could be read only once
    return value
