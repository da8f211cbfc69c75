"""A safetensors folder as tensors that are views of mapped files."""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from optipfair_engine.errors import CheckpointError, UnsupportedModelError
from optipfair_engine.headers import HeaderError, TensorInfo, read_config, read_headers

DTYPES: Mapping[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
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
            if info.dtype not in DTYPES:
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
        file, info = self.tensors[name]
        dtype = DTYPES[info.dtype]
        if info.numel == 0:
            return torch.empty(info.shape, dtype=dtype)
        if info.start % dtype.itemsize:
            raise UnsupportedModelError(f"tensor {name} is not aligned in {file.name}")
        flat = torch.frombuffer(self._maps[file], dtype=dtype, count=info.numel, offset=info.start)
        return flat.view(info.shape)

    def bytes_of(self, name: str) -> memoryview:
        """A tensor's bytes, as a view of its file."""
        file, info = self.tensors[name]
        return memoryview(self._maps[file])[info.start : info.end]


def _map(file: Path) -> mmap.mmap:
    with file.open("rb") as stream:
        # a private mapping may be written to, which is what torch wants of a buffer; nothing ever does
        return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
