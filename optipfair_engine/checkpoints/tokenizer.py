"""Tokenizers in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from optipfair_engine.checkpoints.gguf import find_gguf, load_gguf_tokenizer
from optipfair_engine.errors import TokenizerError

_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
)


def load_tokenizer(path: Path | str) -> Any:
    """The tokenizer of a model folder or GGUF file; it pads with its end token if it has no other.

    Raises:
        TokenizerError: there is none, or it can't be built.
    """
    folder = Path(path)
    if folder.is_dir() and any((folder / name).is_file() for name in _FILES):
        tokenizer = _from_folder(folder)
    elif (gguf := find_gguf(folder)) is not None:
        tokenizer = load_gguf_tokenizer(gguf)
    else:
        raise TokenizerError(f"{folder.name} has no tokenizer files")
    if len(tokenizer) == 0:
        raise TokenizerError(f"the tokenizer of {folder.name} is empty")
    if tokenizer.pad_token is None and tokenizer.eos_token is not None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _from_folder(folder: Path) -> Any:
    try:
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the many tokenizer classes raise whatever their parsers do
        raise TokenizerError(
            f"the tokenizer of {folder.name} can't be read: {type(error).__name__}"
        ) from error
