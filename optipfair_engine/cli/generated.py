"""Options of a command that follow from a model's fields: flag, type, choices, default, help and panel."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from optipfair_engine.cli.shared import parse_layers
from optipfair_engine.options.base import About, about, value_type


@dataclass(frozen=True)
class _Option:
    """One option of a command: the place of its field in the model, and how its value is read."""

    place: tuple[str, ...]
    annotation: Any
    default: Any
    read: Callable[[Any], Any]

    @property
    def name(self) -> str:
        """The parameter's name: ``seed``, or ``fairness_weight`` of a model within the model."""
        return "_".join(self.place)

    @property
    def parameter(self) -> inspect.Parameter:
        """The parameter that the command line is made of."""
        return inspect.Parameter(
            self.name, inspect.Parameter.KEYWORD_ONLY, default=self.default, annotation=self.annotation
        )


def options_from(
    *models: type[BaseModel],
    without: Collection[str] = (),
    changed: Mapping[str, Mapping[str, Any]] | None = None,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A decorator: the command's ``**chosen`` is filled from options, one for each field of the models.

    A field that is a model itself gives one option for each of its fields, and arrives as a mapping, or
    ``None`` where nothing was said.

    Args:
        models: where the fields are declared.
        without: names of options that the command spells itself.
        changed: option → what the command says otherwise: ``default``, ``help``, ``min``.
    """
    options = [option for model in models for option in _options(model, without, changed or {})]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = [
            parameter
            for parameter in inspect.signature(command, eval_str=True).parameters.values()
            if parameter.kind is not inspect.Parameter.VAR_KEYWORD
        ]

        @functools.wraps(command)
        def run(**given: Any) -> None:
            chosen: dict[str, Any] = {}
            for option in options:
                _put(chosen, option.place, option.read(given.pop(option.name)))
            command(**given, **chosen)

        signature = inspect.Signature([*own, *(option.parameter for option in options)])
        run.__signature__ = signature  # type: ignore[attr-defined]
        run.__annotations__ = {name: part.annotation for name, part in signature.parameters.items()}
        return run

    return decorate


def _options(
    model: type[BaseModel],
    without: Collection[str],
    changed: Mapping[str, Mapping[str, Any]],
    outside: tuple[str, ...] = (),
    panel: str | None = None,
) -> Iterator[_Option]:
    for name, field in model.model_fields.items():
        place, kind = (*outside, name), value_type(field)
        option = "_".join(place)
        if option in without:
            continue
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _options(kind, without, changed, place, about(field).panel)
        else:
            told = about(field)
            yield _option(place, field, About(panel or told.panel, flag=told.flag), changed.get(option, {}))


def _option(place: tuple[str, ...], field: FieldInfo, told: About, changed: Mapping[str, Any]) -> _Option:
    kind, read = _words(value_type(field))
    default = changed.get("default", None if field.is_required() else field.get_default())
    least = next((part.ge for part in field.metadata if hasattr(part, "ge")), None)
    flags = () if told.flag is None else (told.flag,)
    said = typer.Option(
        *flags,
        help=changed.get("help", field.description),
        min=changed.get("min", least if kind is int else None),
        rich_help_panel=told.panel,
    )
    annotation = kind | None if default is None else kind
    return _Option(place, Annotated[annotation, said], default, read)


def _words(kind: Any) -> tuple[Any, Callable[[Any], Any]]:
    """The type that the command line knows, and what makes the field's value of what was said."""
    if kind in (bool, int, float, str):
        return kind, lambda value: value
    if get_origin(kind) is Literal:
        words = {str(word): word for word in get_args(kind)}
        return Literal[tuple(words)], lambda word: None if word is None else words[word]
    return str, parse_layers  # positions of layers


def _put(chosen: dict[str, Any], place: tuple[str, ...], value: Any) -> None:
    if len(place) == 1:
        chosen[place[0]] = value
    elif value is not None:
        chosen[place[0]] = {**(chosen.get(place[0]) or {}), place[1]: value}
    else:
        chosen.setdefault(place[0], None)
