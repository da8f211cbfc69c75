"""How the code is laid out: no circles of imports, small modules and rooms, no hidden settings."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("api", "jobs", "migrations", "optipfair_engine", "service", "worker")
FILES = tuple(file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py")))


def _module(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imported(source: str, package: str) -> Iterator[tuple[str, str | None]]:
    """(module, name in it) of every import: at the top, inside functions, and those for types alone."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base]).rstrip(".")
            yield from ((base, alias.name) for alias in node.names)


def imports_between(sources: Mapping[str, tuple[str, str]]) -> dict[str, set[str]]:
    """Module → the modules among ``sources`` (module → package, text) that it imports."""
    graph: dict[str, set[str]] = {}
    for module, (package, text) in sources.items():
        graph[module] = set()
        for base, name in _imported(text, package):
            found = next((m for m in (f"{base}.{name}", base) if m in sources), None)
            if found is not None and found != module:
                graph[module].add(found)
    return graph


def circle_in(graph: Mapping[str, set[str]]) -> list[str]:
    """The modules of one circle, in order; empty if there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def _sources() -> dict[str, tuple[str, str]]:
    found = {}
    for file in FILES:
        module = _module(file)
        package = module if file.name == "__init__.py" else module.rpartition(".")[0]
        stub = file.with_suffix(".pyi")  # what an __init__ resolves on first use
        text = file.read_text(encoding="utf-8") + (stub.read_text(encoding="utf-8") if stub.exists() else "")
        found[module] = (package, text)
    return found


def test_no_files_import_each_other_in_a_circle() -> None:
    assert circle_in(imports_between(_sources())) == []


@pytest.mark.parametrize(
    "back",
    [
        "import pkg.a",
        "from pkg import a",
        "from .a import x",
        "def f():\n    from pkg.a import x",
        "if TYPE_CHECKING:\n    from pkg.a import x",
    ],
)
def test_a_circle_is_found(back: str) -> None:
    sources = {"pkg.a": ("pkg", "from pkg.b import y"), "pkg.b": ("pkg", back), "pkg.c": ("pkg", "import os")}
    assert set(circle_in(imports_between(sources))) == {"pkg.a", "pkg.b"}
    assert circle_in(imports_between(sources | {"pkg.b": ("pkg", "import pkg.c")})) == []


def test_folders_hold_at_most_sixteen_modules() -> None:
    others = (file for folder in ("tests", "benchmarks", "demo") for file in (ROOT / folder).rglob("*.py"))
    counted = (file for file in (*FILES, *others) if file.name != "__init__.py")
    count = Counter(file.parent for file in counted if "versions" not in file.parts)
    assert {str(folder.relative_to(ROOT)): n for folder, n in count.items() if n > 16} == {}


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_modules_have_at_most_400_lines(file: Path) -> None:
    assert len(file.read_text(encoding="utf-8").splitlines()) <= 400


def test_the_engine_reads_no_environment_variable() -> None:
    readers = {
        str(file.relative_to(ROOT))
        for file in FILES
        if file.is_relative_to(ROOT / "optipfair_engine")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if (isinstance(node, ast.Attribute) and node.attr in ("environ", "environb", "getenv"))
        or (isinstance(node, ast.alias) and node.name in ("environ", "getenv"))
    }
    assert readers == set()
