"""Whether the bytes that arrived are those that were declared, and what the model in them says of itself.

A file is read once from the store, in constant memory. The header reader gets a folder in which each file of
weights has its true size but only its header's bytes: it reads nothing else, and a sparse file costs no disk.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import struct
from collections.abc import Iterator
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory

from jobs.artifacts import ArtifactStore
from jobs.errors import InvalidError
from jobs.rows import JsonObject
from jobs.uploads.rows import PART_NAME, Upload, UploadFile
from optipfair_engine.headers import HeaderError, inspect_model_folder

MAX_HEADER_BYTES = 100_000_000
"""The header reader reads no more of a safetensors file; a GGUF file's vocabulary fits, too."""
_LENGTH_BYTES = 8


class HashMismatchError(InvalidError):
    """A file is not the one that was declared; `blob_id` is what holds its bytes."""

    def __init__(self, file: UploadFile) -> None:
        message = f"the bytes of {file.name} are not those of the declared sha256; send it again"
        super().__init__(message, code="upload_hash_mismatch", location=("path", "upload_id"))
        self.blob_id = file.blob_id


def read_file(store: ArtifactStore, file: UploadFile) -> Iterator[bytes]:
    """All bytes of a whole file, in order; errors of the store as `open_range` has them."""
    return chain.from_iterable(store.open_range(part.storage, PART_NAME, 0, part.size) for part in file.parts)


def check_upload(store: ArtifactStore, upload: Upload, scratch: Path) -> JsonObject | None:
    """Hash all files and read a model's headers; returns the header reader's facts, None for a text.

    Raises:
        InvalidError: `upload_incomplete`, `upload_hash_mismatch`, `upload_not_text`, or a code of the header
            reader.
    """
    for file in upload.files:
        if not file.whole:
            message = f"{file.name} has arrived up to byte {file.offset} of {file.size}"
            raise InvalidError(message, code="upload_incomplete", location=("path", "upload_id"))
    scratch.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=scratch) as folder:
        for file in upload.files:
            _check_file(store, upload.kind, file, Path(folder) / file.name)
        return _facts(Path(folder)) if upload.kind == "model" else None


def _check_file(store: ArtifactStore, kind: str, file: UploadFile, copy: Path) -> None:
    digest = hashlib.sha256()
    text = codecs.getincrementaldecoder("utf-8")() if kind != "model" else None
    left: int | None = None if kind == "model" else 0  # how much more of it the header reader needs
    with copy.open("wb") as header:
        for chunk in read_file(store, file):
            digest.update(chunk)
            if left is None:
                left = _needed(file, chunk)
            if left:
                header.write(chunk[:left])
                left -= len(chunk[:left])
            _decode(file, text, chunk)
        header.truncate(file.size)
    _decode(file, text, b"", final=True)
    if digest.hexdigest() != file.sha256:
        raise HashMismatchError(file)


def _needed(file: UploadFile, start: bytes) -> int:
    """How many bytes from the start of a file of a model the header reader may look at."""
    if file.name.lower().endswith((".json", ".gguf")):
        return MAX_HEADER_BYTES
    if not file.name.lower().endswith(".safetensors"):
        return 0  # of the others it only looks at whether they are there
    if len(start) < _LENGTH_BYTES:
        return len(start)
    (length,) = struct.unpack("<Q", start[:_LENGTH_BYTES])
    return _LENGTH_BYTES + min(int(length), MAX_HEADER_BYTES)


def _decode(
    file: UploadFile, decoder: codecs.IncrementalDecoder | None, chunk: bytes, *, final: bool = False
) -> None:
    if decoder is None:
        return
    try:
        decoder.decode(chunk, final)
    except UnicodeDecodeError:
        message = f"{file.name} is not text in UTF-8"
        raise InvalidError(message, code="upload_not_text", location=("path", "upload_id")) from None


def _facts(folder: Path) -> JsonObject:
    try:
        facts: JsonObject = json.loads(json.dumps(asdict(inspect_model_folder(folder))))
    except HeaderError as error:
        raise InvalidError(str(error), code=error.code, location=("path", "upload_id")) from None
    return facts
