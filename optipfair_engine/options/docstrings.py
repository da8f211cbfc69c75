"""The docstring behind each attribute of a class, for all classes of a module in one reading of its source.

Pydantic reads them too (``use_attribute_docstrings``), but class by class and with Python's own tokenizer.
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterator
from functools import cache
from itertools import pairwise


def docstrings_of(cls: type) -> dict[str, str]:
    """The docstrings of a class's own annotated attributes, by name; none where there is no source."""
    return _of_module(cls.__module__).get(cls.__qualname__, {})


@cache
def _of_module(name: str) -> dict[str, dict[str, str]]:
    try:
        source = inspect.getsource(sys.modules[name])
    except OSError:
        return {}
    return dict(_classes(ast.parse(source), ""))


def _classes(node: ast.AST, within: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Every class with its qualified name and its attributes' docstrings."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef):
            yield within + child.name, dict(_documented(child.body))
            yield from _classes(child, f"{within}{child.name}.")
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _classes(child, f"{within}{child.name}.<locals>.")
        elif isinstance(child, ast.stmt):
            yield from _classes(child, within)


def _documented(body: list[ast.stmt]) -> Iterator[tuple[str, str]]:
    for attribute, behind in pairwise(body):
        if not (isinstance(attribute, ast.AnnAssign) and isinstance(attribute.target, ast.Name)):
            continue
        match behind:
            case ast.Expr(ast.Constant(str(text))):
                yield attribute.target.id, inspect.cleandoc(text)
