"""What several commands share: their common options, and finding models and texts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from optipfair_engine.checkpoints import hub_files
from optipfair_engine.errors import CheckpointError, InvalidOptionError
from optipfair_engine.options.words import ComputeDtype, DType

if TYPE_CHECKING:
    from optipfair_engine.calibration import CalibrationSet

CALIBRATION, RUN = "Calibration", "Running"

ModelPath = Annotated[str, typer.Option(help="Model folder, GGUF file, or hub id (owner/name).")]
OutputPath = Annotated[Path, typer.Option(help="Folder for the result.")]
OptionalOutput = Annotated[Path | None, typer.Option(help="Folder for metrics.json and plots.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:0, …", rich_help_panel=RUN)]
ComputingIn = Annotated[
    ComputeDtype,
    typer.Option(
        "--compute-dtype",
        help="What passes that measure are computed in; auto: the fastest here; checkpoint: its own.",
        rich_help_panel=RUN,
    ),
]
Dtype = Annotated[DType, typer.Option(help="Number type; auto is the checkpoint's.", rich_help_panel=RUN)]
Verbose = Annotated[bool, typer.Option("--verbose/--quiet", help="Show progress.", rich_help_panel=RUN)]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.", rich_help_panel=RUN)]
NumSamples = Annotated[int, typer.Option(help="How many samples.", min=1, rich_help_panel=CALIBRATION)]
BatchSize = Annotated[int, typer.Option(help="Samples in a batch.", min=1, rich_help_panel=CALIBRATION)]
MaxLength = Annotated[int, typer.Option(help="Tokens in a sample.", min=2, rich_help_panel=CALIBRATION)]


def find_model(name: str) -> Path:
    """A local path, or the folder that a hub id was downloaded to.

    Raises:
        CheckpointError: neither exists.
    """
    path = Path(name).expanduser()
    if path.exists():
        return path
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise CheckpointError(f"{name}: no such model folder", "model_not_found")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        folder = snapshot_download(
            name, allow_patterns=list(hub_files.ALLOWED), ignore_patterns=list(hub_files.FOREIGN)
        )
        return Path(folder)
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(
            f"{name}: no such folder, and it could not be fetched from the hub ({type(error).__name__})",
            "model_not_found",
        ) from error


def parse_layers(text: str | None) -> tuple[int, ...] | None:
    """``"2,5,8"`` as numbers.

    Raises:
        InvalidOptionError: something else.
    """
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise InvalidOptionError(
            f"--layer-indices must be comma-separated integers (e.g. '2,5,8'), got {text!r}"
        ) from error


def read_calibration(
    path: Path | None, source: Path, *, num_samples: int, batch_size: int, max_length: int
) -> CalibrationSet | None:
    """Calibration samples from a file, for the model in ``source``."""
    if path is None:
        return None
    from optipfair_engine.calibration import load_calibration_file
    from optipfair_engine.checkpoints import load_tokenizer

    return load_calibration_file(
        path,
        load_tokenizer(source),
        max_length=max_length,
        num_samples=num_samples,
        batch_size=batch_size,
    )


def read_text_file(path: Path | None) -> list[str] | None:
    """The texts of a ``.txt`` or ``.jsonl`` file."""
    if path is None:
        return None
    from optipfair_engine.calibration.text import read_texts

    return read_texts(path)[0]


def refuse_unread(context: typer.Context, readers: Mapping[str, tuple[object, str]]) -> None:
    """Refuse options that were given although nothing would read them.

    Args:
        context: of the command.
        readers: option → what it only matters with (``None`` if that wasn't given), and the name of that.
    """
    for name, (value, reader) in readers.items():
        source = context.get_parameter_source(name)
        if value is None and source is not None and source.name == "COMMANDLINE":
            raise InvalidOptionError(f"--{name.replace('_', '-')} has no effect without {reader}")
