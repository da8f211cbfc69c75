"""The bytes of one tensor of the result, chunk by chunk, in buffers of fixed size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from optipfair_engine.errors import UnsupportedModelError
from optipfair_engine.streaming.edits import Selection, TensorEdit
from optipfair_engine.streaming.shards import CHUNK, Buffers
from optipfair_engine.streaming.source import CheckpointSource, torch_dtype


@dataclass(frozen=True)
class Chunk:
    """Bytes, and the buffer that they lie in (to be given back), if any."""

    data: memoryview
    buffer: np.ndarray[Any, np.dtype[np.uint8]] | None = None


def chunks(source: CheckpointSource, edit: TensorEdit, buffers: Buffers) -> Iterator[Chunk]:
    """The bytes of one tensor of the result.

    Tensors that stay as they are come as views of the mapped file; the others are gathered into buffers.
    """
    if edit.replacement is not None:
        import torch

        weight = edit.replacement.detach().to(device="cpu", dtype=torch_dtype(edit.dtype)).contiguous()
        yield from _slices(weight.reshape(-1).view(torch.uint8).numpy().data)
    elif edit.selection is None:
        yield from _slices(source.bytes_of(edit.original))
    elif edit.selection.dim == 0 and len(source.info(edit.original).shape) > 2:
        yield from _entries(
            source.bytes_of(edit.original), edit.selection, source.info(edit.original).shape[0]
        )
    else:
        yield from _gathered(source.bits(edit.original), edit.selection, buffers)


def _slices(data: memoryview) -> Iterator[Chunk]:
    for start in range(0, len(data), CHUNK):
        yield Chunk(data[start : start + CHUNK])


def _entries(data: memoryview, selection: Selection, count: int) -> Iterator[Chunk]:
    """The selected entries along the first of many dimensions: whole experts, as they lie in the file."""
    size = len(data) // count
    for entry in selection.indices.tolist():
        yield from _slices(data[entry * size : (entry + 1) * size])


def _gathered(bits: np.ndarray[Any, Any], selection: Selection, buffers: Buffers) -> Iterator[Chunk]:
    """The selected rows or columns of a matrix (entries of a vector), some rows of the result at a time."""
    matrix = bits[:, None] if bits.ndim == 1 else bits
    if matrix.ndim != 2:
        raise UnsupportedModelError("only vectors and matrices can be narrowed")
    by_rows = selection.dim == 0
    rows = selection.indices.size if by_rows else matrix.shape[0]
    width = matrix.shape[1] if by_rows else selection.indices.size
    step = max(1, CHUNK // max(1, width * matrix.itemsize))
    for start in range(0, rows, step):
        stop = min(rows, start + step)
        buffer = buffers.take()
        nbytes = (stop - start) * width * matrix.itemsize
        if nbytes > len(buffer):  # a single row larger than a buffer: no known model has one
            raise UnsupportedModelError(f"rows of {nbytes} bytes are not streamed")
        out = buffer[:nbytes].view(matrix.dtype).reshape(stop - start, width)
        # three times faster than torch's index_select along the last dimension; "clip" skips a second buffer
        if by_rows:
            np.take(matrix, selection.indices[start:stop], axis=0, out=out, mode="clip")
        else:
            np.take(matrix[start:stop], selection.indices, axis=1, out=out, mode="clip")
        yield Chunk(buffer[:nbytes].data, buffer)
