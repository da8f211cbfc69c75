"""Scripts that nothing else runs still fit the code: what they import from it is there."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OURS = {"api", "benchmarks", "demo", "jobs", "migrations", "optipfair_engine", "service", "tests", "worker"}
SCRIPTS = sorted((ROOT / "benchmarks").rglob("*.py"))


def imported(script: Path) -> Iterator[tuple[str, str]]:
    """(module, name) of all that a script takes from the project, wherever in it that stands."""
    for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] in OURS:
            yield from ((node.module, alias.name) for alias in node.names)


def exists(module: str, name: str) -> bool:
    if hasattr(importlib.import_module(module), name):
        return True
    try:
        importlib.import_module(f"{module}.{name}")
    except ModuleNotFoundError:
        return False
    return True


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: str(script.relative_to(ROOT)))
def test_what_a_benchmark_imports_is_there(script: Path) -> None:
    assert [(module, name) for module, name in imported(script) if not exists(module, name)] == []
