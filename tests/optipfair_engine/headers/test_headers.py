"""What is refused before a weight is read, and what is said of a folder."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from optipfair_engine.headers import (
    HeaderError,
    estimate_prune,
    inspect_model_folder,
    loaded_bytes,
    model_revision,
    read_headers,
    read_safetensors_header,
)

CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 2,
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_attention_heads": 2,
    "vocab_size": 10,
}


def write_safetensors(path: Path, entries: dict[str, Any], data: bytes) -> None:
    header = json.dumps(entries).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)


def entry(shape: list[int], start: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    write_safetensors(
        tmp_path / "model.safetensors",
        {"__metadata__": {"format": "pt"}, "a": entry([2, 3], 0, 24), "b": entry([4], 24, 32, "BF16")},
        bytes(32),
    )
    return tmp_path


def code_of(folder: Path) -> str:
    with pytest.raises(HeaderError) as caught:
        inspect_model_folder(folder)
    assert str(folder.parent) not in caught.value.message, "an absolute path in a message"
    return caught.value.code


def test_facts(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")
    facts = inspect_model_folder(folder)
    assert (facts.model_type, facts.num_layers, facts.hidden_size, facts.intermediate_size) == (
        "llama",
        2,
        8,
        16,
    )
    assert (facts.parameters, facts.dtype, facts.format, facts.has_tokenizer) == (
        10,
        "F32",
        "safetensors",
        True,
    )
    assert facts.num_key_value_heads == 2
    assert set(facts.files) == {"config.json", "model.safetensors", "tokenizer.json"}


def test_facts_of_a_text_tower(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "gemma3", "text_config": CONFIG}))
    facts = inspect_model_folder(folder)
    assert (facts.model_type, facts.num_layers) == ("gemma3", 2)


@pytest.mark.parametrize(
    ("entries", "size", "code"),
    [
        ({"a": entry([2], 0, 8)}, 4, "model_truncated"),
        ({"a": entry([2], 0, 8)}, 12, "model_header_invalid"),
        ({"a": entry([2], 0, 4)}, 4, "model_header_invalid"),
        ({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, 12, "model_header_invalid"),
        ({"a": entry([2], 4, 12)}, 12, "model_header_invalid"),
        ({"a": entry([-2], 0, 8)}, 8, "model_header_invalid"),
        ({"a": entry([2**62, 2**62], 0, 8)}, 8, "model_header_invalid"),
        ({"a": entry([2], 8, 0)}, 8, "model_header_invalid"),
        ({"a": entry([2], 0, 8, "F33")}, 8, "model_header_invalid"),
        ({"a": {"dtype": "F32"}}, 8, "model_header_invalid"),
        ({"a": 7}, 8, "model_header_invalid"),
    ],
)
def test_a_bad_tensor_table_is_refused(folder: Path, entries: dict[str, Any], size: int, code: str) -> None:
    write_safetensors(folder / "model.safetensors", entries, bytes(size))
    assert code_of(folder) == code


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"", "model_truncated"),
        (b"1234567", "model_truncated"),
        (struct.pack("<Q", 2**62) + b"{}", "model_header_invalid"),
        (struct.pack("<Q", 50) + b"{}", "model_truncated"),
        (struct.pack("<Q", 2) + b"[]", "model_header_invalid"),
        (struct.pack("<Q", 2) + b"{x", "model_header_invalid"),
        (struct.pack("<Q", 40_000) + b"[" * 40_000, "model_header_invalid"),
    ],
)
def test_a_bad_header_is_refused(folder: Path, raw: bytes, code: str) -> None:
    (folder / "model.safetensors").write_bytes(raw)
    assert code_of(folder) == code


def test_any_cut_of_a_good_file_is_refused(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    for length in range(0, len(whole), 7):
        (folder / "model.safetensors").write_bytes(whole[:length])
        with pytest.raises(HeaderError):
            read_safetensors_header(folder / "model.safetensors")


def test_pickles_are_refused_with_a_way_out(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(HeaderError, match=r"save_pretrained") as caught:
        inspect_model_folder(folder)
    assert caught.value.code == "model_pickled"


@pytest.mark.parametrize(
    ("config", "code"),
    [
        (None, "model_config_invalid"),
        ("{", "model_config_invalid"),
        ("[]", "model_config_invalid"),
        ("{}", "model_config_invalid"),
        ('{"model_type": 3}', "model_config_invalid"),
        ('{"model_type": "own", "auto_map": {"AutoModel": "own.Own"}}', "model_remote_code"),
    ],
)
def test_a_bad_config_is_refused(folder: Path, config: str | None, code: str) -> None:
    (folder / "config.json").unlink()
    if config is not None:
        (folder / "config.json").write_text(config)
    assert code_of(folder) == code


def test_code_beside_a_family_of_transformers_is_never_needed(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({**CONFIG, "auto_map": {"AutoModel": "x.Y"}}))
    assert inspect_model_folder(folder).model_type == "llama"


def test_missing_folders_and_weights(folder: Path, tmp_path: Path) -> None:
    assert code_of(tmp_path / "nothing") == "model_not_found"
    with pytest.raises(HeaderError, match=r"'config.json' is a file; name the folder"):
        inspect_model_folder(folder / "config.json")
    (folder / "model.safetensors").unlink()
    assert code_of(folder) == "model_not_found"


def shard(folder: Path, change: Callable[[dict[str, str]], dict[str, str]] = dict) -> None:
    (folder / "model.safetensors").unlink()
    write_safetensors(folder / "model-00001-of-00002.safetensors", {"a": entry([2], 0, 8)}, bytes(8))
    write_safetensors(folder / "model-00002-of-00002.safetensors", {"b": entry([2], 0, 8)}, bytes(8))
    names = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    index = {"metadata": {}, "weight_map": change(names)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_shards_are_read_together(folder: Path) -> None:
    shard(folder)
    assert inspect_model_folder(folder).parameters == 4
    assert {name: path.name for name, (path, _) in read_headers(folder).items()} == {
        "a": "model-00001-of-00002.safetensors",
        "b": "model-00002-of-00002.safetensors",
    }


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda names: {**names, "b": "../../etc/passwd.safetensors"}, "model_header_invalid"),
        (lambda names: {**names, "b": "model-00003-of-00002.safetensors"}, "model_truncated"),
        (lambda names: {**names, "c": names["a"]}, "model_header_invalid"),
        (lambda names: {}, "model_header_invalid"),
    ],
)
def test_a_bad_index_is_refused(folder: Path, change: Callable[..., dict[str, str]], code: str) -> None:
    shard(folder, change)
    assert code_of(folder) == code


def test_the_revision_is_that_of_the_bytes(folder: Path) -> None:
    first = model_revision(folder)
    assert model_revision(folder) == first
    (folder / "config.json").write_text(json.dumps({**CONFIG, "hidden_size": 9}))
    second = model_revision(folder)
    (folder / "config.json").rename(folder / "config2.json")
    assert len({first, second, model_revision(folder)}) == 3


def test_reading_headers_loads_no_torch() -> None:
    code = (
        "import sys, optipfair_engine.headers, optipfair_engine.architectures.registry;"
        "print({'torch', 'numpy', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_estimates_follow_the_spec(folder: Path) -> None:
    facts = inspect_model_folder(folder)
    none = estimate_prune(facts, {"pruning_type": "MLP_GLU", "pruning_percentage": 0})
    half = estimate_prune(facts, {"pruning_type": "MLP_GLU", "pruning_percentage": 50})
    calibrated = estimate_prune(facts, {"pruning_percentage": 50, "calibration": {"texts": ["x"] * 64}})
    assert none.output_bytes == facts.bytes
    assert half.output_bytes <= none.output_bytes
    assert calibrated.seconds >= half.seconds
    refitted = estimate_prune(
        facts,
        {
            "pruning_percentage": 50,
            "calibration": {"texts": ["x"] * 64},
            "compensation": "least_squares",
        },
    )
    # two layers of sixteen neurons, a float32 Gram matrix each of fitted and of held-out tokens
    assert refitted.peak_memory_bytes - calibrated.peak_memory_bytes == 2 * 2 * 16**2 * 4
    assert estimate_prune(facts, {"target_bytes": 5}).output_bytes == 5
    healed = estimate_prune(facts, {"pruning_percentage": 50, "healing": {"max_seconds": 60}})
    # trained in float32 with Adam: sixteen bytes a parameter that is left, and the original in float32
    assert healed.peak_memory_bytes - half.peak_memory_bytes > 12 * facts.parameters
    assert healed.seconds >= half.seconds + 60


def test_a_model_is_as_large_as_the_dtype_that_it_is_loaded_in(folder: Path) -> None:
    facts = replace(inspect_model_folder(folder), parameters=1_000, bytes=2_000)
    gguf = replace(facts, format="gguf", bytes=600)  # quantised: about five bits a weight
    assert loaded_bytes(facts) == loaded_bytes(facts, "auto") == loaded_bytes(facts, "bfloat16") == 2_000
    assert loaded_bytes(gguf) == loaded_bytes(replace(gguf, bytes=2_000)) == 2_000
    assert loaded_bytes(facts, "float32") == loaded_bytes(gguf, "float32") == 4_000
    plain, wide = (estimate_prune(facts, {"dtype": dtype}) for dtype in ("auto", "float32"))
    assert wide.output_bytes == 2 * plain.output_bytes == 4_000
    assert wide.peak_memory_bytes - plain.peak_memory_bytes == 2 * 2_000
