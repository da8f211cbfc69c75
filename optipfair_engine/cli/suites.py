"""``optipfair suites``: the catalogue of bias suites, and their files."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from optipfair_engine.cli.shared import Json, Verbose
from optipfair_engine.cli.terminal import explained, progress, show_json, show_table
from optipfair_engine.errors import InvalidOptionError
from optipfair_engine.options.suites import (
    CATALOGUE,
    SUITE_NAMES,
    SUITES_FOLDER,
    SuiteEntry,
    entry_of,
    how_to_get,
    missing_files,
)

suites = typer.Typer(help="Bias suites by name: what they measure, and their data.", no_args_is_help=True)

SuitesFolder = Annotated[Path, typer.Option(help="Folder in which the suites' files lie.")]
Name = Annotated[str, typer.Argument(help="A suite's name, as optipfair suites list shows it.")]


@suites.command("list")
@explained
def show_all(suites_folder: SuitesFolder = SUITES_FOLDER, as_json: Json = False) -> None:
    """List the suites: what each measures, and whether its data are here."""
    if as_json:
        show_json({"suites": [_described(entry, suites_folder) for entry in CATALOGUE]})
        return
    rows = {entry.name: (_state(entry, suites_folder), entry.measures) for entry in CATALOGUE}
    show_table(f"Bias suites ({suites_folder})", rows, headers=("suite", "data", "measures"))


@suites.command("show")
@explained
def show_one(name: Name, suites_folder: SuitesFolder = SUITES_FOLDER, as_json: Json = False) -> None:
    """Show one suite: licence, citation, files, and the metrics that gates may name."""
    entry = _entry(name)
    found = _described(entry, suites_folder)
    if as_json:
        show_json(found)
        return
    shown = {key: found[key] for key in ("measures", "licence", "citation", "page", "state")}
    shown |= {key: ", ".join(found[key] or ["those of its files"]) for key in _LISTS}
    show_table(entry.title, {key.replace("_", " "): value for key, value in shown.items()})
    for file in entry.files:
        print(f"{file.name}: {file.url}")
        print(f"  SHA-256 {file.sha256}, {file.size:,} bytes" if file.sha256 else "  SHA-256 not known here")
    if entry.files and missing_files(entry, suites_folder):
        print(f"To have it here, {how_to_get(entry, suites_folder)}.")


_LISTS = ("languages", "metrics", "category_metrics", "categories")


@suites.command()
@explained
def fetch(
    name: Name,
    suites_folder: SuitesFolder = SUITES_FOLDER,
    mirror: Annotated[
        str | None, typer.Option(help="Address under which SUITE/FILE is found, not the published one.")
    ] = None,
    verbose: Verbose = True,
) -> None:
    """Fetch a suite's files into the suites folder, checked by their SHA-256."""
    from optipfair_engine.bias.prompts.fetching import fetch_suite

    with progress(not verbose) as report:
        paths = fetch_suite(_entry(name), suites_folder, mirror=mirror, report=report)
    for path in paths:
        print(path)


def _entry(name: str) -> SuiteEntry:
    if name not in SUITE_NAMES:
        raise InvalidOptionError(f"There is no suite {name!r}; there are {', '.join(SUITE_NAMES)}")
    return entry_of(name)


def _state(entry: SuiteEntry, folder: Path) -> str:
    return "missing" if missing_files(entry, folder) else "here"


def _described(entry: SuiteEntry, folder: Path) -> dict[str, Any]:
    internal = ("reader", "tokens", "renamed", "changes", "category_changes")
    found = {key: value for key, value in asdict(entry).items() if key not in internal}
    return {**found, "fetchable": entry.fetchable, "state": _state(entry, folder)}
