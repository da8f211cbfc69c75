"""The ``optipfair`` command. Heavy imports stay inside the commands, so that ``--help`` is quick."""

from __future__ import annotations

import gc
import signal
import sys

import typer

from optipfair_engine.cli.bias import bias, compare
from optipfair_engine.cli.export import export
from optipfair_engine.cli.inspect import analyze, demo_model, evaluate, importance
from optipfair_engine.cli.plan import plan
from optipfair_engine.cli.presets import presets
from optipfair_engine.cli.prune import prune
from optipfair_engine.cli.suites import suites

app = typer.Typer(
    name="optipfair",
    help="Prune language models, and see what that does to them: importance, quality, speed and bias.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(prune)
app.command()(plan)
app.command()(presets)
app.command()(analyze)
app.command()(importance)
app.command()(evaluate)
app.command()(bias)
app.command()(compare)
app.command("demo-model")(demo_model)
app.add_typer(export, name="export")
app.add_typer(suites, name="suites")


def _show_version(wanted: bool) -> None:
    if wanted:
        from optipfair_engine import __version__

        print(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(
        False, "--version", help="Show the version and exit.", is_eager=True, callback=_show_version
    ),
) -> None:
    """Options of the command as a whole."""


def main() -> None:
    """Run the command; exit codes: 0 success, 1 failure, 2 wrong options, 143 terminated."""
    signal.signal(signal.SIGTERM, _terminated)
    # by default the collector walks through all of torch hundreds of times during its import: for a second
    gc.set_threshold(50_000, 20, 20)
    # threads take shorter turns: where one imports transformers beside another that copies weights, the
    # copying would otherwise wait for 5 ms at each of its calls
    sys.setswitchinterval(2e-4)
    try:
        app()
    finally:
        gc.freeze()  # nor does it walk through it at the end: half a second more


def _terminated(_signal: int, _frame: object) -> None:
    # an exception, unlike the default, lets unfinished output folders be removed on the way out
    raise SystemExit(143)
