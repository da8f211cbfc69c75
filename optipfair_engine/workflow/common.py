"""What the workflows share: loading a model folder, calibration from texts, and writing JSON."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from optipfair_engine.calibration import CalibrationSet, calibration_from_texts
from optipfair_engine.checkpoints import load_model, load_tokenizer
from optipfair_engine.errors import CheckpointError, InvalidOptionError, TokenizerError
from optipfair_engine.progress import Reporter

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class LoadedModel:
    """A model with its tokenizer, which is ``None`` where the folder has none and no text is needed."""

    model: PreTrainedModel
    tokenizer: Any


def resolve_device(device: str) -> str:
    """``auto`` becomes the accelerator if there is one (that has float64, as MPS has not), else the CPU.

    Raises:
        InvalidOptionError: a device that this machine doesn't have.
    """
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if device == "auto":
        return "cpu" if accelerator is None or accelerator.type == "mps" else str(accelerator)
    kind = device.split(":", maxsplit=1)[0]
    if kind != "cpu" and (accelerator is None or accelerator.type != kind):
        raise InvalidOptionError(f"device {device!r} is not available on this machine")
    return device


def load(source: Path, *, dtype: str, device: str, needs_tokenizer: bool, report: Reporter) -> LoadedModel:
    """Load a model folder (or a GGUF file) and, where there is one, its tokenizer.

    Raises:
        CheckpointError, NonFiniteWeightsError: the model can't be read, or holds NaN.
        TokenizerError: text is needed, and there is no usable tokenizer.
    """
    report("load", 0, 1, "reading the model")
    tokenizer = load_tokenizer(source) if needs_tokenizer else None
    model = load_model(source, dtype=dtype, device=resolve_device(device))
    if tokenizer is None:
        with suppress(
            TokenizerError, CheckpointError
        ):  # a model without one can still be pruned by its weights
            tokenizer = load_tokenizer(source)
    report("load", 1, 1, "the model is in memory")
    return LoadedModel(model, tokenizer)


def calibration_set(
    texts: Sequence[str] | CalibrationSet | None,
    tokenizer: Any,
    *,
    max_length: int,
    num_samples: int | None,
    batch_size: int,
) -> CalibrationSet | None:
    """Calibration batches from texts (or as they come), ``None`` from ``None``."""
    if texts is None or isinstance(texts, CalibrationSet):
        return texts
    return calibration_from_texts(
        texts, tokenizer, max_length=max_length, num_samples=num_samples or 128, batch_size=batch_size
    )


def folder_bytes(folder: Path) -> int:
    """The size of all files in a folder, in bytes."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
