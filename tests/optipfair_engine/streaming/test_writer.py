"""Files that drop behind the writer from the page cache hold what was written, with its hash."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from optipfair_engine.streaming import shards as writer
from optipfair_engine.streaming.ahead import Ahead
from optipfair_engine.streaming.edits import TensorEdit
from optipfair_engine.streaming.gather import Chunk
from optipfair_engine.streaming.shards import Background, Buffers, HashedFile


@pytest.mark.parametrize("with_advice", [True, False])
def test_file_and_hash_are_of_all_that_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, with_advice: bool
) -> None:
    monkeypatch.setattr(writer, "_LAG", 10_000)
    monkeypatch.setattr(writer, "CHUNK", 4_096)
    if not with_advice:
        monkeypatch.delattr(os, "posix_fadvise", raising=False)
    pieces = [os.urandom(size) for size in (1, 4_096, 20_000, 7, 60_000, 0, 4_095)]
    path, freed = tmp_path / "file", []
    with Background() as background, HashedFile(path, background) as file:
        for number, piece in enumerate(pieces):
            file.write(piece, lambda number=number: freed.append(number))  # type: ignore[misc]
        result = file.result()
    data = b"".join(pieces)
    assert path.read_bytes() == data
    assert result.result() == (len(data), hashlib.sha256(data).hexdigest())
    assert freed == list(range(len(pieces)))


EDIT = TensorEdit("x", "x", "F32", (1,), None)


def gathered(buffers: Buffers, count: int, fails_at: int | None = None) -> Iterator[tuple[TensorEdit, Chunk]]:
    """Chunks in buffers, numbered by their bytes; perhaps a failure after some."""
    for number in range(count):
        if number == fails_at:
            raise OSError("a file that can't be read")
        buffer = buffers.take()
        buffer[:4] = number
        yield EDIT, Chunk(buffer[:4].data, buffer)


def test_chunks_come_in_order_and_their_buffers_are_used_again() -> None:
    buffers, seen = Buffers(3), []
    with Ahead(gathered(buffers, 20), buffers) as pieces:
        for _, chunk in pieces:
            assert chunk is not None
            seen.append(bytes(chunk.data)[0])
            buffers.give_back(chunk.buffer)
    assert seen == list(range(20))


def test_whoever_stops_early_leaves_no_thread_and_no_buffer_behind() -> None:
    buffers, before = Buffers(2), threading.active_count()
    with pytest.raises(OSError, match="full"), Ahead(gathered(buffers, 20), buffers) as pieces:
        for _, chunk in pieces:
            assert chunk is not None
            buffers.give_back(chunk.buffer)
            raise OSError("the disk is full")
    assert threading.active_count() == before
    buffers.take(), buffers.take()  # both are free: neither call waits


def test_what_fails_in_the_other_thread_is_raised_in_this_one() -> None:
    buffers, seen = Buffers(3), 0
    with pytest.raises(OSError, match="can't be read"), Ahead(gathered(buffers, 5, 2), buffers) as pieces:
        for _, chunk in pieces:
            assert chunk is not None
            seen += 1
            buffers.give_back(chunk.buffer)
    assert seen == 2
