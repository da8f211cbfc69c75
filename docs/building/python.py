"""The Python reference: whatever the public stubs export, and the fields of the options."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

#: Public modules, each with what it is for; what they export is read from them.
MODULES = {
    "optipfair_engine": "What most programs need",
    "optipfair_engine.pruning": "Plans, and more of pruning",
    "optipfair_engine.plans": "What a plan is",
    "optipfair_engine.checkpoints": "Loading, saving, verifying",
    "optipfair_engine.bias": "Bias analysis",
    "optipfair_engine.workflow": "From a folder to a folder",
    "service.client": "The client of the service",
}
#: The options that the calls and commands share: where they are declared, and who takes them.
OPTIONS = {
    "optipfair_engine.options.prune.PruneOptions": "Of `prune_checkpoint`; in part of `prune_model`.",
    "optipfair_engine.workflow.bias.BiasOptions": "Of `bias_checkpoint`.",
}


def python_page() -> str:
    """Markdown of the public names of the engine and the client."""
    seen: set[int] = set()
    parts = [part for module, title in MODULES.items() for part in _module(module, title, seen)]
    parts += [part for path, words in OPTIONS.items() for part in _options(path, words)]
    return "\n\n".join(parts) + "\n"


def _module(name: str, title: str, seen: set[int]) -> Iterator[str]:
    module = importlib.import_module(name)
    directives = []
    for public in module.__all__:
        value = getattr(module, public)
        if id(value) in seen or not (inspect.isclass(value) or inspect.isfunction(value)):
            continue
        seen.add(id(value))
        kind = "autoclass" if inspect.isclass(value) else "autofunction"
        directives.append(f".. {kind}:: {name}.{public}")
    if directives:
        yield f"## {title}"
        yield f"`{name}`"
        yield "```{eval-rst}\n" + "\n\n".join(directives) + "\n```"


def _options(path: str, words: str) -> Iterator[str]:
    module, _, name = path.rpartition(".")
    model: type[BaseModel] = getattr(importlib.import_module(module), name)
    yield f"## {name}"
    yield f"`{path}`. {words}"
    yield "\n\n".join(_field(*item) for item in model.model_fields.items())


def _field(name: str, field: FieldInfo) -> str:
    default = (
        "required" if field.is_required() else f"default `{field.get_default(call_default_factory=True)!r}`"
    )
    help_text = " ".join((field.description or "").split())
    for mark in "*_<>[]":
        help_text = help_text.replace(mark, f"\\{mark}")
    return f"`{name}`: `{_type(field.annotation)}`, {default}\n: {help_text or '…'}"


def _type(annotation: Any) -> str:
    """A type in words: without bounds, a ``Literal`` as its choices."""
    arguments = get_args(annotation)
    if hasattr(annotation, "__metadata__"):
        return _type(arguments[0])
    origin = get_origin(annotation)
    if origin is None:
        return "None" if annotation is type(None) else getattr(annotation, "__name__", str(annotation))
    if str(origin).endswith("Literal"):
        return " | ".join(map(repr, arguments))
    inner = [_type(part) if part is not Ellipsis else "…" for part in arguments]
    if getattr(origin, "__name__", "") in ("Union", "UnionType"):
        return " | ".join(inner)
    return f"{origin.__name__}[{', '.join(inner)}]"
