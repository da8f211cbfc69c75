"""A safetensors folder as tensors that are views of mapped files.

Torch is imported when a tensor is first asked for as one of its own: copying and selecting need NumPy alone.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from optipfair_engine.errors import CheckpointError, UnsupportedModelError
from optipfair_engine.headers import HeaderError, TensorInfo, read_config, read_headers

if TYPE_CHECKING:
    import torch
    from torch import Tensor

#: Safetensors' names of types → torch's.
DTYPE_NAMES: Final[Mapping[str, str]] = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
}
#: Bytes of one element.
ITEM_BYTES: Final[Mapping[str, int]] = {
    **{"BOOL": 1, "U8": 1, "I8": 1, "I16": 2, "I32": 4, "I64": 8},
    **{"F16": 2, "BF16": 2, "F32": 4, "F64": 8},
}

#: Heads that share their tensor with the token embedding where the config ties them.
_TIED_HEADS = ("lm_head.weight", "embed_out.weight")


class CheckpointSource:
    """A checkpoint folder, its shards mapped privately: what reads touch is page cache, not private memory.

    Attributes:
        path: the folder.
        config: ``config.json`` as plain data.
        tensors: name → (shard, tensor), from the shards' headers; every bound was checked.

    Raises:
        CheckpointError: no safetensors there, or a header that lies.
        UnsupportedModelError: a tensor of a quantised or otherwise unknown type.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.config: dict[str, Any] = read_config(path)
            self.tensors: dict[str, tuple[Path, TensorInfo]] = read_headers(path)
        except HeaderError as error:
            raise CheckpointError(str(error), error.code) from error
        if not self.tensors:
            raise CheckpointError("the folder holds no safetensors", "model_not_found")
        for name, (_, info) in self.tensors.items():
            if info.dtype not in DTYPE_NAMES:
                raise UnsupportedModelError(f"tensor {name} has the type {info.dtype}, which is not streamed")
        self._maps = {file: _map(file) for file in {file for file, _ in self.tensors.values()}}

    def __contains__(self, name: object) -> bool:
        return name in self.tensors

    @property
    def untied(self) -> list[str]:
        """Names of the tensors that loading reads: it ignores a stored copy of a head that is tied."""
        nested = self.config.get("text_config")
        tied = any(
            isinstance(config, dict) and config.get("tie_word_embeddings") is True
            for config in (self.config, nested)
        )
        return [name for name in self.tensors if not (tied and name in _TIED_HEADS)]

    def info(self, name: str) -> TensorInfo:
        """Type, shape and place of a tensor."""
        return self.tensors[name][1]

    def tensor(self, name: str) -> Tensor:
        """A tensor as a view of its file. Writing to it would not reach the file; don't."""
        import torch

        file, info = self.tensors[name]
        dtype = torch_dtype(info.dtype)
        if info.numel == 0:
            return torch.empty(info.shape, dtype=dtype)
        self._check_alignment(name)
        flat = torch.frombuffer(self._maps[file], dtype=dtype, count=info.numel, offset=info.start)
        return flat.view(info.shape)

    def bits(self, name: str) -> np.ndarray[Any, Any]:
        """A tensor's elements as unsigned integers of the same bits, in its shape; a view of its file."""
        file, info = self.tensors[name]
        integer = np.dtype(f"u{ITEM_BYTES[info.dtype]}")
        if info.numel == 0:
            return np.empty(info.shape, dtype=integer)
        self._check_alignment(name)
        flat = np.frombuffer(self._maps[file], dtype=integer, count=info.numel, offset=info.start)
        return flat.reshape(info.shape)

    def _check_alignment(self, name: str) -> None:
        file, info = self.tensors[name]
        if info.start % ITEM_BYTES[info.dtype]:
            raise UnsupportedModelError(f"tensor {name} is not aligned in {file.name}")

    def bytes_of(self, name: str) -> memoryview:
        """A tensor's bytes, as a view of its file."""
        file, info = self.tensors[name]
        return memoryview(self._maps[file])[info.start : info.end]


def torch_dtype(name: str) -> torch.dtype:
    """Torch's type of a safetensors name."""
    import torch

    dtype: torch.dtype = getattr(torch, DTYPE_NAMES[name])
    return dtype


def _map(file: Path) -> mmap.mmap:
    with file.open("rb") as stream:
        # a private mapping may be written to, which is what torch wants of a buffer; nothing ever does
        return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
