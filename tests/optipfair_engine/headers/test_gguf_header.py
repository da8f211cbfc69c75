"""GGUF headers: facts without the data, and every length checked."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from optipfair_engine.headers import HeaderError, inspect_model_folder


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def pair(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def gguf() -> bytes:
    pairs = [
        pair("general.architecture", 8, text("llama")),
        pair("llama.block_count", 4, struct.pack("<I", 3)),
        pair("llama.embedding_length", 4, struct.pack("<I", 8)),
        pair("llama.feed_forward_length", 4, struct.pack("<I", 16)),
        pair("tokenizer.ggml.tokens", 9, struct.pack("<IQ", 8, 2) + text("a") + text("b")),
        pair("tokenizer.ggml.scores", 9, struct.pack("<IQ", 6, 2) + struct.pack("<ff", 0, 1)),
    ]
    tensor = text("w") + struct.pack("<IQQIQ", 2, 4, 8, 0, 0)
    header = b"GGUF" + struct.pack("<IQQ", 3, 1, len(pairs)) + b"".join(pairs) + tensor
    return header + bytes(-len(header) % 32) + bytes(4 * 8 * 4)


def test_facts(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(gguf())
    for place in (tmp_path, tmp_path / "m.gguf"):
        facts = inspect_model_folder(place)
        assert (facts.model_type, facts.num_layers, facts.hidden_size) == ("llama", 3, 8)
        assert (facts.intermediate_size, facts.vocab_size, facts.parameters) == (16, 2, 32)
        assert (facts.format, facts.has_tokenizer) == ("gguf", True)


def test_any_cut_is_refused(tmp_path: Path) -> None:
    whole = gguf()
    for length in range(0, len(whole), 5):
        (tmp_path / "m.gguf").write_bytes(whole[:length])
        with pytest.raises(HeaderError):
            inspect_model_folder(tmp_path)


def test_lengths_out_of_bounds_are_refused(tmp_path: Path) -> None:
    huge = pair("x", 9, struct.pack("<IQ", 4, 2**60))
    (tmp_path / "m.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + huge)
    with pytest.raises(HeaderError) as caught:
        inspect_model_folder(tmp_path)
    assert caught.value.code == "model_truncated"


@pytest.mark.parametrize("alignment", [(4, struct.pack("<I", 0)), (8, text("x")), (7, b"\x01")])
def test_an_alignment_that_is_no_size_is_refused(tmp_path: Path, alignment: tuple[int, bytes]) -> None:
    stated = pair("general.alignment", *alignment)
    (tmp_path / "m.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + stated)
    with pytest.raises(HeaderError) as caught:
        inspect_model_folder(tmp_path)
    assert caught.value.code == "model_header_invalid"


def test_several_files_are_ambiguous(tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(gguf())
    with pytest.raises(HeaderError, match="several"):
        inspect_model_folder(tmp_path)
