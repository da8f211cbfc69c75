"""Files that drop behind the writer from the page cache hold what was written, with its hash."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from optipfair_engine.streaming import shards as writer
from optipfair_engine.streaming.shards import Background, HashedFile


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
