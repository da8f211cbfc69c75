"""What may be declared: names as artifacts', types by suffix, sizes within the tenant's quota."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from jobs.errors import InvalidError

KINDS = ("model", "calibration", "suite")
MAX_FILES = 1000
_TEXT = frozenset({".txt", ".json", ".jsonl", ".csv"})
SUFFIXES = {
    "model": frozenset({".safetensors", ".gguf", ".json", ".txt", ".jsonl", ".csv", ".jinja", ".model"}),
    "calibration": _TEXT,
    "suite": _TEXT,
}
_PICKLED = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"})


@dataclass(frozen=True)
class Declared:
    """A file that a caller is going to send."""

    name: str
    size: int
    sha256: str


def check_declaration(kind: str, files: Sequence[Declared]) -> None:
    """Refuse files that could not become part of an upload of this kind.

    Raises:
        InvalidError: `upload_type_refused`, `model_pickled`, `upload_names_clash`, `upload_files_wrong`.
    """
    if kind != "model" and len(files) != 1:
        message = f"a {kind} is one file; {len(files)} are declared"
        raise InvalidError(message, code="upload_files_wrong", location=("files",))
    seen: set[str] = set()
    for number, file in enumerate(files):
        where = ("files", number, "name")
        suffix = PurePosixPath(file.name).suffix.lower()
        if kind == "model" and suffix in _PICKLED:
            message = f"{file.name} holds pickled weights, which can run code: send safetensors or GGUF"
            raise InvalidError(message, code="model_pickled", location=where)
        if suffix not in SUFFIXES[kind]:
            known = ", ".join(sorted(name.removeprefix(".") for name in SUFFIXES[kind]))
            message = f"a {kind} has files of the types {known}; {file.name} is of none of them"
            raise InvalidError(message, code="upload_type_refused", location=where)
        if file.name.lower() in seen:  # some disks do not tell them apart
            message = f"two files are named {file.name}, but for capitals"
            raise InvalidError(message, code="upload_names_clash", location=where)
        seen.add(file.name.lower())
