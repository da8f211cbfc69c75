"""GGUF files out: a checkpoint's tensors one by one, never the model as a whole."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from optipfair_engine.checkpoints.gguf.layout import GgufLayout
from optipfair_engine.checkpoints.gguf.tokenizer import read_vocabulary
from optipfair_engine.checkpoints.loading import load_config
from optipfair_engine.errors import CheckpointError, InvalidOptionError, UnsupportedModelError
from optipfair_engine.headers import HeaderError, read_headers
from optipfair_engine.progress import Reporter, null_reporter

if TYPE_CHECKING:
    from optipfair_engine.options.words import GgufType

_CHUNK_ELEMENTS = 2**23
_FLOATS = ("F64", "F32", "F16", "BF16")
_ROPE_FREQS = "rope_freqs.weight"


def write_gguf(
    folder: Path,
    output: Path,
    *,
    kind: GgufType = "f16",
    tokenizer_from: Path | None = None,
    report: Reporter = null_reporter,
) -> GgufLayout:
    """Write a safetensors folder as one GGUF file, with its tokenizer.

    Matrices are stored as ``kind``; norms, biases and rotary factors as float32, as llama.cpp has them. A row
    that is no multiple of 32 can't be stored as ``q8_0``, and is stored as f16. The file appears in one
    piece. Private memory is a few buffers of some megabytes beside the tokenizer.

    Args:
        folder: the checkpoint; it may have layers of unequal sizes (``per_layer_config``).
        output: the file; there must be none yet.
        kind: ``f16``, ``bf16`` or ``q8_0``.
        tokenizer_from: a GGUF file whose tokenizer is copied, instead of converting the folder's own.
        report: progress, one step a tensor.

    Returns:
        How llama.cpp will see the model.

    Raises:
        InvalidOptionError: the file exists, or its name doesn't end in ``.gguf``.
        UnsupportedModelError: llama.cpp would compute something else, or a weight is too large for f16.
        TokenizerError: the tokenizer is missing, or of a kind that can't be converted faithfully.
        CheckpointError: the checkpoint can't be read.
    """
    if output.suffix != ".gguf":
        raise InvalidOptionError(f"{output.name} must end in .gguf: llama.cpp goes by it")
    if output.exists():
        raise InvalidOptionError(f"{output.name} exists already: name another file, or remove it first")
    headers = _headers(folder)
    layout = GgufLayout.of(load_config(folder), {name: info.shape for name, (_, info) in headers.items()})
    vocabulary = read_vocabulary(folder, layout.vocab_size, tokenizer_from)
    names = {name: place for name in headers if (place := layout.name_of(name)) is not None}
    with _draft_of(output) as draft, _quiet_writer(draft, layout.architecture) as writer:
        _describe(writer, folder.resolve().name, kind)
        layout.describe(writer)
        vocabulary.describe(writer)
        if layout.rope.divisors is not None:
            _announce(writer, _ROPE_FREQS, tuple(layout.rope.divisors.shape), kind)
        for name, place in names.items():
            _announce(writer, place, headers[name][1].shape, kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        if layout.rope.divisors is not None:
            writer.write_tensor_data(_Converted(_ROPE_FREQS, layout.rope.divisors, kind))
        for done, (name, place) in enumerate(names.items(), 1):
            with safe_open(headers[name][0], framework="pt") as shard:
                tensor = layout.arranged(name, shard.get_tensor(name))
                writer.write_tensor_data(_Converted(name, tensor, kind))
            report("export", done, len(names), place)
    return layout


def _headers(folder: Path) -> Any:
    try:
        headers = read_headers(folder)
    except HeaderError as error:
        raise CheckpointError(error.message, error.code) from None
    if not headers:
        raise CheckpointError(
            f"{folder.name} holds no safetensors: only those are written as GGUF", "model_not_found"
        )
    for name, (_, info) in headers.items():
        if info.dtype not in _FLOATS:
            raise UnsupportedModelError(
                f"tensor {name} has the type {info.dtype}, which is no weight to convert"
            )
    return headers


@contextmanager
def _draft_of(output: Path) -> Iterator[Path]:
    """A file beside ``output`` that takes its place when the block ends well, and vanishes otherwise."""
    output.parent.mkdir(parents=True, exist_ok=True)
    draft = output.with_name(f".{output.name}.part")
    try:
        yield draft
        draft.rename(output)
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def _quiet_writer(path: Path, architecture: str) -> Iterator[Any]:
    import gguf

    writer = gguf.GGUFWriter(path, architecture)
    try:
        yield writer
    finally:
        writer.close()


def _describe(writer: Any, name: str, kind: GgufType) -> None:
    import gguf

    file_type = {
        "f16": gguf.LlamaFileType.MOSTLY_F16,
        "bf16": gguf.LlamaFileType.MOSTLY_BF16,
        "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
    }[kind]
    writer.add_type("model")
    writer.add_name(name)
    writer.add_file_type(int(file_type))
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def stored_as(shape: tuple[int, ...], kind: GgufType) -> str:
    """The name of the GGML type that a tensor of this shape is stored in."""
    if len(shape) < 2:
        return "F32"
    if kind == "q8_0" and shape[-1] % 32:
        return "F16"
    return kind.upper()


def _announce(writer: Any, place: str, shape: tuple[int, ...], kind: GgufType) -> None:
    """Tell the writer of a tensor that will follow."""
    import gguf

    stored = gguf.GGMLQuantizationType[stored_as(tuple(shape), kind)]
    writer.add_tensor_info(
        place, shape, np.dtype(np.float32), _stored_bytes(tuple(shape), kind), raw_dtype=stored
    )


def _stored_bytes(shape: tuple[int, ...], kind: GgufType) -> int:
    import gguf

    block, width = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[stored_as(shape, kind)]]
    return int(np.prod(shape)) // int(block) * int(width)


class _Converted:
    """A tensor that is converted as it is written, some rows at a time: what the writer needs of an array."""

    def __init__(self, name: str, tensor: Tensor, kind: GgufType) -> None:
        self._name, self._tensor = name, tensor
        self._stored = stored_as(tuple(tensor.shape), kind)
        self.nbytes = _stored_bytes(tuple(tensor.shape), kind)

    def tofile(self, stream: BinaryIO) -> None:
        """Convert and write."""
        flat = self._tensor if self._tensor.dim() > 1 else self._tensor[None]
        for rows in flat.split(max(1, _CHUNK_ELEMENTS // flat.shape[-1])):
            stream.write(_bytes_of(self._name, rows, self._stored))


def _bytes_of(name: str, rows: Tensor, stored: str) -> bytes:
    """Rows as the bytes of a GGML type.

    Raises:
        UnsupportedModelError: a weight that f16 has no number for.
    """
    if stored == "BF16":
        return rows.to(torch.bfloat16).contiguous().view(torch.int16).numpy().tobytes()
    if stored == "Q8_0":
        import gguf

        return bytes(gguf.quantize(rows.float().numpy(), gguf.GGMLQuantizationType.Q8_0).tobytes())
    made = rows.to(torch.float16 if stored == "F16" else torch.float32).contiguous()
    if not torch.isfinite(made).all():
        raise UnsupportedModelError(
            f"{name} holds a weight beyond the range of {stored.lower()}: take type bf16"
        )
    return made.numpy().tobytes()
