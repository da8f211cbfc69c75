"""``optipfair export``: a checkpoint for another program."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from optipfair_engine.cli.shared import Json, Verbose, find_model
from optipfair_engine.cli.terminal import explained, progress, show_json, show_table
from optipfair_engine.options.words import GgufType

export = typer.Typer(
    help="Write a checkpoint in the format of another program.",
    no_args_is_help=True,
)


@export.callback()
def _formats() -> None:
    """Write a checkpoint in the format of another program."""


@export.command()
@explained
def gguf(
    model_path: Annotated[str, typer.Argument(metavar="MODEL", help="Model folder, or hub id (owner/name).")],
    output_path: Annotated[Path, typer.Option(help="The file; its name ends in .gguf.")],
    kind: Annotated[GgufType, typer.Option("--type", help="What the matrices are stored as.")] = "f16",
    tokenizer_from: Annotated[
        Path | None,
        typer.Option(help="A GGUF file whose tokenizer is copied. Default: the model's own, converted."),
    ] = None,
    verbose: Verbose = True,
    as_json: Json = False,
) -> None:
    """Write a GGUF file for llama.cpp, tokenizer included.

    Llama, Mistral, Qwen2 and Qwen3 models, pruned or not; layers of unequal sizes of the first three.
    """
    source = find_model(model_path)
    from optipfair_engine.workflow.export import export_gguf

    with progress(not verbose) as report:
        made = export_gguf(source, output_path, kind=kind, tokenizer_from=tokenizer_from, report=report)
    if as_json:
        show_json(made)
    else:
        show_table(f"Saved to {output_path}", {name.replace("_", " "): value for name, value in made.items()})
