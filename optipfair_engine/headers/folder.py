"""What a model folder says about itself, read without torch: names, shapes, sizes, and whether it is safe.

No torch, NumPy or transformers, so that an API server can use it. Nothing here reads a weight; every length
and offset is checked against the size of its file before it is believed.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeGuard

from optipfair_engine.architectures import config_names
from optipfair_engine.architectures.registry import NATIVE_MODEL_TYPES, known_architecture
from optipfair_engine.headers.errors import HeaderError
from optipfair_engine.headers.gguf import read_gguf_header

MAX_HEADER_BYTES = 100_000_000
MAX_CONFIG_BYTES = 10_000_000

_DTYPE_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "I16": 16, "U16": 16, "F16": 16,
    "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64, "C64": 64, "F4": 4,
}  # fmt: skip
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a safetensors file; ``start`` and ``end`` are absolute byte offsets in the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class ModelFacts:
    """What is known of a model without loading it; sizes that the config doesn't state are None."""

    model_type: str
    architectures: tuple[str, ...]
    num_layers: int | None
    hidden_size: int | None
    intermediate_size: int | None
    num_attention_heads: int | None
    num_key_value_heads: int | None
    vocab_size: int | None
    parameters: int
    bytes: int
    dtype: str
    format: Literal["safetensors", "gguf"]
    has_tokenizer: bool
    files: Mapping[str, int] = field(default_factory=dict)
    revision: str | None = None
    max_positions: int | None = None
    num_experts: int | None = None
    num_experts_per_tok: int | None = None
    n_group: int | None = None
    topk_group: int | None = None
    expert_parameters: int | None = None


def read_safetensors_header(path: Path) -> dict[str, TensorInfo]:
    """Name -> tensor of one safetensors file, in file order.

    Raises:
        HeaderError: ``model_header_invalid`` or ``model_truncated``.
    """
    size = path.stat().st_size
    if size < 8:
        raise HeaderError(
            "model_truncated", f"{path.name} has {size} bytes, too few for a safetensors header"
        )
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > MAX_HEADER_BYTES:
            raise HeaderError(
                "model_header_invalid", f"{path.name}: header of {length} bytes is out of bounds"
            )
        if length > size - 8:
            raise HeaderError("model_truncated", f"{path.name} is shorter than its header says")
        header = _parse_json(file.read(length), "model_header_invalid", path.name)
    header.pop("__metadata__", None)
    tensors = {name: _tensor_info(path.name, name, entry, 8 + length) for name, entry in header.items()}
    _check_layout(path.name, tensors, 8 + length, size)
    return tensors


def _parse_json(raw: bytes, code: str, name: str) -> dict[str, Any]:
    try:
        parsed = json.loads(raw)
    except (ValueError, RecursionError):
        raise HeaderError(code, f"{name} is not valid JSON") from None
    if not isinstance(parsed, dict):
        raise HeaderError(code, f"{name} is not a JSON object")
    return parsed


def _tensor_info(file: str, name: str, entry: object, base: int) -> TensorInfo:
    fields = entry if isinstance(entry, dict) else {}
    dtype, shape, offsets = fields.get("dtype"), fields.get("shape"), fields.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in _DTYPE_BITS:
        raise HeaderError("model_header_invalid", f"{file}: tensor {name!r} has no known dtype")
    if not _are_counts(shape) or not _are_counts(offsets) or len(offsets) != 2:
        raise HeaderError("model_header_invalid", f"{file}: entry of tensor {name!r} is malformed")
    start, end = offsets
    bits = math.prod(shape) * _DTYPE_BITS[dtype]
    if (end - start) * 8 != bits:
        raise HeaderError(
            "model_header_invalid", f"{file}: tensor {name!r} has offsets that don't fit its shape"
        )
    return TensorInfo(dtype, tuple(shape), base + start, base + end)


def _are_counts(values: object) -> TypeGuard[list[int]]:
    return isinstance(values, list) and all(type(v) is int and 0 <= v < 2**63 for v in values)


def _check_layout(file: str, tensors: Mapping[str, TensorInfo], base: int, size: int) -> None:
    """Tensors follow one another without holes or overlaps, and end where the file ends."""
    position = base
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)):
        if info.start != position:
            raise HeaderError(
                "model_header_invalid", f"{file}: tensor {name!r} overlaps another or leaves a hole"
            )
        position = info.end
    if position > size:
        raise HeaderError("model_truncated", f"{file} is shorter than its header says")
    if position < size:
        raise HeaderError("model_header_invalid", f"{file} is longer than its header says")


def inspect_model_folder(path: Path) -> ModelFacts:
    """Check a safetensors folder, a folder with one ``.gguf``, or a ``.gguf`` file, and say what is in it.

    Raises:
        HeaderError: ``model_not_found``, ``model_pickled``, ``model_remote_code``, ``model_config_invalid``,
            ``model_header_invalid``, ``model_truncated``, ``model_unreadable`` (a name that is not UTF-8).
    """
    if path.is_file() and path.suffix == ".gguf":
        return _gguf_facts(path, {path.name: path.stat().st_size})
    if path.is_file():
        raise HeaderError(
            "model_not_found",
            f"{path.name!r} is a file; name the folder that holds the model, or a .gguf file",
        )
    if not path.is_dir():
        raise HeaderError("model_not_found", f"there is no model folder {path.name!r}")
    files = {entry.name: entry.stat().st_size for entry in sorted(path.iterdir()) if entry.is_file()}
    _check_names(files)
    shards = weight_files(path)
    if shards:
        return _safetensors_facts(path, shards, files)
    ggufs = sorted(path.glob("*.gguf"))
    if len(ggufs) == 1:
        return _gguf_facts(ggufs[0], files)
    if ggufs:
        raise HeaderError("model_not_found", "several .gguf files; name one of them")
    raise HeaderError("model_not_found", "the folder holds no model.safetensors, no shard index and no .gguf")


def _check_names(names: Iterable[str]) -> None:
    """Names go into the revision and into JSON; one that is not UTF-8 fits into neither."""
    for name in names:
        try:
            name.encode()  # bytes that Python could not decode are lone surrogates in it
        except UnicodeEncodeError:
            raise HeaderError(
                "model_unreadable", f"rename the file {name!a}: its name is not UTF-8"
            ) from None


def weight_files(path: Path) -> list[Path]:
    """The safetensors files that make up the model in ``path``, in name order; empty if there are none.

    Raises:
        HeaderError: ``model_pickled`` if there are only pickled weights; a bad shard index.
    """
    index = path / "model.safetensors.index.json"
    single = path / "model.safetensors"
    if single.is_file():
        return [single]
    if index.is_file():
        return [path / name for name in sorted(set(read_index(path).values()))]
    if not any(path.glob("*.gguf")):
        pickled = sorted(found.name for pattern in _PICKLED for found in path.glob(pattern))
        if pickled:
            raise HeaderError("model_pickled", pickled_message(pickled[0]))
    return []


def holds_safetensors(path: Path) -> bool:
    """Whether a model's weights can be read tensor by tensor; a look at the names of its files."""
    return path.is_dir() and any(path.glob("model*.safetensors"))


def pickled_message(name: str) -> str:
    """Why pickled weights are refused, and how to convert them."""
    return (
        f"{name} is a pickle, which can run code when it is loaded, and is refused. Convert it once, "
        "where you trust it: AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder) "
        "writes safetensors"
    )


def read_index(path: Path) -> dict[str, str]:
    """Tensor name -> shard file name of a sharded checkpoint; every shard exists and is a plain name."""
    raw = _read_bounded(path / "model.safetensors.index.json", MAX_HEADER_BYTES, "model_header_invalid")
    mapping = _parse_json(raw, "model_header_invalid", "model.safetensors.index.json").get("weight_map")
    if not isinstance(mapping, dict) or not mapping:
        raise HeaderError("model_header_invalid", "the shard index has no weight_map")
    for name in set(map(str, mapping.values())):
        if Path(name).name != name or not name.endswith(".safetensors") or "\\" in name:
            raise HeaderError("model_header_invalid", "the shard index names a file outside of the folder")
        if not (path / name).is_file():
            raise HeaderError("model_truncated", f"shard {name} of the index is missing")
    return {str(key): str(value) for key, value in mapping.items()}


def read_headers(path: Path) -> dict[str, tuple[Path, TensorInfo]]:
    """Tensor name -> (file, tensor) over all shards; the shards hold exactly what their index says."""
    found: dict[str, tuple[Path, TensorInfo]] = {}
    for file in weight_files(path):
        for name, info in read_safetensors_header(file).items():
            if name in found:
                raise HeaderError("model_header_invalid", f"tensor {name!r} is in two shards")
            found[name] = (file, info)
    if (path / "model.safetensors.index.json").is_file() and not (path / "model.safetensors").is_file():
        wrong = [
            name
            for name, file in read_index(path).items()
            if name not in found or found[name][0].name != file
        ]
        if wrong:
            raise HeaderError("model_header_invalid", f"tensor {wrong[0]!r} is not in the shard of the index")
    return found


def _read_bounded(path: Path, limit: int, code: str) -> bytes:
    if path.stat().st_size > limit:
        raise HeaderError(code, f"{path.name} is larger than {limit} bytes")
    return path.read_bytes()


def read_config(path: Path) -> dict[str, Any]:
    """``config.json`` of a folder.

    Raises:
        HeaderError: ``model_config_invalid``; ``model_remote_code`` if only the folder's code could run it.
    """
    file = path / "config.json"
    if not file.is_file():
        raise HeaderError("model_config_invalid", "config.json is missing")
    config = _parse_json(
        _read_bounded(file, MAX_CONFIG_BYTES, "model_config_invalid"), "model_config_invalid", file.name
    )
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or not model_type:
        raise HeaderError("model_config_invalid", "config.json has no model_type")
    if config.get("auto_map") and model_type not in NATIVE_MODEL_TYPES:
        raise HeaderError(
            "model_remote_code",
            f"model family {model_type!r} needs Python code from its own folder, which is never run here",
        )
    return config


def _safetensors_facts(path: Path, shards: list[Path], files: dict[str, int]) -> ModelFacts:
    config = read_config(path)
    headers = read_headers(path)
    counts: Counter[str] = Counter()
    for _, info in headers.values():
        counts[info.dtype] += info.numel
    nested = config.get("text_config")
    text: Mapping[str, Any] = nested if isinstance(nested, dict) else config
    family = str(text.get("model_type") or config["model_type"])
    heads = config_names.stated(text, config_names.NUM_HEADS)
    architectures = config.get("architectures")
    return ModelFacts(
        model_type=str(config["model_type"]),
        architectures=tuple(map(str, architectures)) if isinstance(architectures, list) else (),
        num_layers=config_names.stated(text, config_names.NUM_LAYERS),
        hidden_size=config_names.stated(text, config_names.HIDDEN_SIZE),
        intermediate_size=config_names.intermediate_size(text, known_architecture(family)),
        num_attention_heads=heads,
        num_key_value_heads=config_names.stated(text, config_names.NUM_KEY_VALUE_HEADS) or heads,
        vocab_size=config_names.stated(text, ("vocab_size",)),
        parameters=sum(counts.values()),
        **_experts_of(text, headers),
        bytes=sum(shard.stat().st_size for shard in shards),
        dtype=counts.most_common(1)[0][0] if counts else "F32",
        format="safetensors",
        has_tokenizer=any(name in files for name in _TOKENIZER_FILES),
        files=files,
        max_positions=config_names.stated(text, config_names.MAX_POSITIONS),
    )


def _experts_of(config: Mapping[str, Any], headers: Mapping[str, tuple[Path, TensorInfo]]) -> dict[str, Any]:
    """How many experts layers have, how tokens choose among them, and the parameters of them all."""
    experts = config_names.stated(config, config_names.NUM_EXPERTS)
    if experts is None:
        return {}
    names = ("num_experts_per_tok", "n_group", "topk_group")
    size = sum(info.numel for name, (_, info) in headers.items() if ".experts." in name)
    return {
        "num_experts": experts,
        **{name: config_names.stated(config, (name,)) for name in names},
        "expert_parameters": size,
    }


def model_revision(path: Path) -> str:
    """SHA-256 over the sorted (name, SHA-256 of the file) of a model: equal bytes, equal revision.

    Reads every byte (about a second a gigabyte); callers keep the answer.
    """
    files = (
        [path]
        if path.is_file()
        else [f for f in path.iterdir() if f.is_file() and not f.name.startswith(".")]
    )
    digest = hashlib.sha256()
    for file in sorted(files, key=lambda f: f.name):
        with file.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        digest.update(f"{file.name}\0{content}\n".encode())
    return digest.hexdigest()


def _gguf_facts(path: Path, files: dict[str, int]) -> ModelFacts:
    values, parameters = read_gguf_header(path)
    arch = values.get("general.architecture")
    if not isinstance(arch, str):
        raise HeaderError("model_config_invalid", f"{path.name} names no architecture")
    facts = {name.removeprefix(f"{arch}."): value for name, value in values.items()}
    heads = config_names.stated(facts, ("attention.head_count",))
    vocabulary = config_names.stated(facts, ("vocab_size", "tokenizer.ggml.tokens"))
    return ModelFacts(
        model_type=arch,
        architectures=(),
        num_layers=config_names.stated(facts, ("block_count",)),
        hidden_size=config_names.stated(facts, ("embedding_length",)),
        intermediate_size=config_names.stated(facts, ("feed_forward_length",)),
        num_attention_heads=heads,
        num_key_value_heads=config_names.stated(facts, ("attention.head_count_kv",)) or heads,
        vocab_size=vocabulary,
        parameters=parameters,
        bytes=path.stat().st_size,
        dtype="GGUF",
        format="gguf",
        has_tokenizer="tokenizer.ggml.tokens" in values,
        files=files,
        max_positions=config_names.stated(facts, ("context_length",)),
    )
