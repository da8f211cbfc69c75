"""The check of the structure by what the family's data tell: without transformers, whose import takes long.

``architectures.stored`` says which tensors a config means. Where that is what the source holds, it is trusted
with the result too; where it isn't, ``structure`` asks transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from optipfair_engine.architectures.stored import stored_tensors
from optipfair_engine.errors import ReloadCheckError
from optipfair_engine.headers import HeaderError, read_config, read_headers
from optipfair_engine.streaming.edits import TensorEdit
from optipfair_engine.streaming.source import CheckpointSource


def tensors_are_told(source: CheckpointSource) -> bool:
    """Whether the source holds the tensors that its config is said to mean, no other and none less."""
    held = {name: source.info(name).shape for name in source.untied}
    return stored_tensors(source.config) == held


def check_written(folder: Path, edits: Sequence[TensorEdit]) -> None:
    """Read back what was written: names and shapes are those that its config means, types those of the plan.

    Raises:
        ReloadCheckError: names the first difference.
    """
    try:
        written = {name: info for name, (_, info) in read_headers(folder).items()}
        meant = stored_tensors(read_config(folder))
    except HeaderError as error:
        raise ReloadCheckError(f"the saved checkpoint can't be read: {error}") from error
    if meant is None:
        raise ReloadCheckError("the saved config is none that tensors are told of")
    missing, extra = sorted(meant.keys() - written.keys()), sorted(written.keys() - meant.keys())
    if missing or extra:
        raise ReloadCheckError(f"tensors missing: {missing[:3]}, not expected: {extra[:3]}")
    dtypes = {edit.name: edit.dtype for edit in edits}
    for name, info in sorted(written.items()):
        if info.shape != meant[name]:
            raise ReloadCheckError(f"{name} has shape {list(info.shape)}, not {list(meant[name])}")
        if info.dtype != dtypes.get(name):
            raise ReloadCheckError(f"{name} has the type {info.dtype}, not {dtypes.get(name)}")
