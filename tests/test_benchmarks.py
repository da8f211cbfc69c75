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


def test_faults_are_told_a_row_each(tmp_path: Path) -> None:
    from benchmarks.outages.faults_table import Record, condensed, read
    from tests.service.outages.scenes import Outcome

    calm = Outcome({"job 200": 3, "livez 200": 3}, 0.2, 1.0, (("succeeded", None),), 1)
    rough = Outcome({"job 503 database_unavailable": 2}, 4.0, 9.0, (("failed", "storage_full"),), 2)
    for moment, seconds, outcome, wrong in (
        ("claim", 3.0, calm, ()),
        ("commit", 3.0, rough, ("an answer",)),
        ("claim", 30.0, calm, ()),
    ):
        Record("postgres", "killed", moment, seconds, outcome, wrong).write(tmp_path / "records")
    assert condensed(read([tmp_path / "records"])).splitlines()[2] == (
        "| postgres | killed | 503 database_unavailable (job) "
        "| 4.0 / 9.0 s (2), attempts 2, `storage_full`, **1 of 2 wrong** | 0.2 / 1.0 s (1) |"
    )
