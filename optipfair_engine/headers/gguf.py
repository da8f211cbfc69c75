"""The header of a GGUF file: key/value pairs and tensor shapes, never the data. Standard library only."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from optipfair_engine.headers.errors import HeaderError

_GGUF_SCALARS = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}
_GGUF_STRING, _GGUF_ARRAY = 8, 9
#: tensor type -> (elements in a block, bytes of a block); others are only known to start inside the file
_GGML_BLOCKS = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 10: (256, 84),
    11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 28: (1, 8), 30: (1, 2),
}  # fmt: skip
_DEFAULT_ALIGNMENT = 32


class _GgufReader:
    """Reads GGUF values, refusing lengths that the rest of the file can't hold."""

    def __init__(self, file: BinaryIO, name: str, size: int) -> None:
        self.file, self.name, self.size = file, name, size

    def take(self, count: int) -> bytes:
        if count > self.size - self.file.tell():
            raise HeaderError("model_truncated", f"{self.name} is shorter than its header says")
        return self.file.read(count)

    def number(self, code: str) -> Any:
        return struct.unpack(code, self.take(struct.calcsize(code)))[0]

    def string(self) -> str:
        return self.take(self.number("<Q")).decode("utf-8", "replace")

    def value(self, kind: int, depth: int = 0) -> Any:
        """A scalar or string; of an array only its length (a vocabulary's entries are not needed)."""
        if kind in _GGUF_SCALARS:
            return self.number(_GGUF_SCALARS[kind])
        if kind == _GGUF_STRING:
            return self.string()
        if kind != _GGUF_ARRAY or depth > 2:
            raise HeaderError("model_header_invalid", f"{self.name}: unknown GGUF value type {kind}")
        item, length = self.number("<I"), self.number("<Q")
        if item in _GGUF_SCALARS:
            self.take(length * struct.calcsize(_GGUF_SCALARS[item]))
        else:
            for _ in range(length):
                self.value(item, depth + 1)
        return length

    def tensors(self, count: int) -> Iterator[tuple[int, int]]:
        """(number of elements, end of the data relative to its start) of each tensor."""
        for _ in range(count):
            self.string()
            elements = math.prod(self.number("<Q") for _ in range(min(self.number("<I"), 8)))
            kind, offset = self.number("<I"), self.number("<Q")
            block, width = _GGML_BLOCKS.get(kind, (1, 0))
            yield elements, offset + elements // block * width


def read_gguf_header(path: Path) -> tuple[dict[str, Any], int]:
    """(key -> value, number of parameters); of an array only its length is kept.

    Raises:
        HeaderError: ``model_header_invalid`` or ``model_truncated``.
    """
    with path.open("rb") as file:
        reader = _GgufReader(file, path.name, path.stat().st_size)
        if reader.take(4) != b"GGUF" or reader.number("<I") not in (2, 3):
            raise HeaderError("model_header_invalid", f"{path.name} is not a GGUF file of version 2 or 3")
        tensors, pairs = reader.number("<Q"), reader.number("<Q")
        values: dict[str, Any] = {}
        for _ in range(pairs):
            key = reader.string()
            values[key] = reader.value(reader.number("<I"))
        sizes = list(reader.tensors(tensors))
        alignment = values.get("general.alignment", _DEFAULT_ALIGNMENT)
        if type(alignment) is not int or alignment < 1:
            raise HeaderError("model_header_invalid", f"{path.name} states an alignment that is no size")
        start = -(-file.tell() // alignment) * alignment
    if any(start + end > path.stat().st_size for _, end in sizes):
        raise HeaderError("model_truncated", f"{path.name} is shorter than its header says")
    return values, sum(elements for elements, _ in sizes)
