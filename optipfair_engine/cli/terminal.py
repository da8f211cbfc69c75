"""What the ``optipfair`` command shows: results on stdout; progress, warnings and errors on stderr."""

from __future__ import annotations

import functools
import json
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ParamSpec

import typer
from rich.console import Console
from rich.table import Table

from optipfair_engine.errors import EngineError, InvalidOptionError, causes, is_out_of_memory
from optipfair_engine.progress import Reporter, null_reporter

P = ParamSpec("P")

FAILURE, USAGE = 1, 2
_NO_MEMORY = (
    "This machine has not enough memory for it. A smaller --batch-size or --max-length, --dtype bfloat16 and "
    "prune --out-of-core need less; not every command has them all."
)
#: Without a terminal a stage is told in at most about this many lines.
_LINES_PER_STAGE = 10

_TITLES = {
    "load": "Loading",
    "calibrate": "Calibrating",
    "select": "Selecting",
    "prune": "Pruning",
    "save": "Saving",
    "verify": "Checking",
    "evaluate": "Evaluating",
    "bias": "Measuring bias",
    "estimate": "Estimating effects",
    "cause": "Patching",
    "generate": "Continuing prompts",
    "plot": "Plotting",
    "heal": "Healing",
    "importance": "Layer importance",
    "export": "Exporting",
}


@contextmanager
def progress(quiet: bool = False) -> Iterator[Reporter]:
    """A reporter for the engine: bars on a terminal, plain lines elsewhere, nothing if ``quiet``."""
    if quiet:
        yield null_reporter
    elif sys.stderr.isatty():
        with _bars() as report:
            yield report
    else:
        yield _Lines()


@contextmanager
def _bars() -> Iterator[Reporter]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description:>16}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("[dim]{task.fields[message]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bars:
        tasks: dict[str, Any] = {}

        def report(stage: str, done: int, total: int, message: str) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(_TITLES.get(stage, stage), message="", total=total)
            bars.update(tasks[stage], completed=done, total=total, message=message)

        yield report


class _Lines:
    """Plain lines on stderr: the first and the last step of a stage, and about every tenth part between."""

    def __init__(self) -> None:
        self._told: dict[str, tuple[int, int]] = {}

    def __call__(self, stage: str, done: int, total: int, message: str) -> None:
        step = max(1, total // _LINES_PER_STAGE)
        last, last_total = self._told.get(stage, (-step, total))
        if done < last:  # the stage starts anew
            last = -step
        if done >= last + step or (done == total and (done, total) != (last, last_total)):
            self._told[stage] = (done, total)
            print(
                f"{_TITLES.get(stage, stage)}: {done}/{total} {message}".rstrip(), file=sys.stderr, flush=True
            )


def explained(command: Callable[P, None]) -> Callable[P, None]:
    """A command whose failures are one clear line on stderr and an exit code: 2 for wrong options, else 1."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings(
                    "ignore", message="nothing is pruned"
                )  # the result says it, see warn()
                command(*args, **kwargs)
        except Exception as error:
            message, code = _explanation(error)
            if message is None:
                raise
            fail(message, code)

    return run


def _explanation(error: Exception) -> tuple[str | None, int]:
    """What to say of a failure, and the exit code; no words for one that nobody foresaw."""
    # the engine may take exhausted memory for a fault of the checkpoint that it was reading
    if any(map(is_out_of_memory, causes(error))):
        return _NO_MEMORY, FAILURE
    if isinstance(error, EngineError):
        return str(error), USAGE if isinstance(error, InvalidOptionError) else FAILURE
    if isinstance(error, TypeError) and "layer_indices" in str(error):
        return str(error), USAGE
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or error}", FAILURE
    return None, FAILURE


def fail(message: str, code: int) -> None:
    """Say what is wrong on stderr and end the command."""
    Console(stderr=True, soft_wrap=True, highlight=False).print(f"[red]Error:[/red] {_plain(message)}")
    raise typer.Exit(code)


def warn(message: str) -> None:
    """A warning on stderr."""
    Console(stderr=True, soft_wrap=True, highlight=False).print(
        f"[yellow]Warning:[/yellow] {_plain(message)}"
    )


def _plain(message: str) -> str:
    from rich.markup import escape

    return escape(message)


def show_json(data: Mapping[str, Any]) -> None:
    """The result as strict JSON on stdout."""
    from optipfair_engine.jsonable import strict

    print(json.dumps(strict(data), indent=2, ensure_ascii=False, allow_nan=False))


def show_table(title: str, rows: Mapping[str, Any], *, headers: tuple[str, ...] = ()) -> None:
    """A table on stdout: one row a name; tuples fill several columns."""
    console = Console()
    console.print(title, soft_wrap=True, highlight=False, markup=False, style="bold")
    table = Table(show_header=bool(headers))
    values = list(rows.values())
    width = max((len(value) if isinstance(value, tuple) else 1 for value in values), default=1)
    for number, header in enumerate(headers or ("",) * (width + 1)):
        table.add_column(header, justify="left" if number == 0 else "right")
    for name, value in rows.items():
        cells = value if isinstance(value, tuple) else (value,)
        table.add_row(name, *(formatted(cell) for cell in cells))
    console.print(table)


def formatted(value: Any) -> str:
    """A number for people: thousands separated, a sensible number of digits."""
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.1f}"
