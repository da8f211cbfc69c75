"""Writing safetensors shards by offsets, hashed by a second thread while they are written.

What is written leaves the page cache again behind the writer: a result larger than memory doesn't push out
what others use, and the kernel writes on into pages that it already has. In a virtual machine whose host
takes free memory back, that is three times faster than filling new ones.
"""

from __future__ import annotations

import hashlib
import json
import os
import queue
import struct
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from optipfair_engine.streaming.edits import TensorEdit
from optipfair_engine.streaming.source import ITEM_BYTES

INDEX_NAME = "model.safetensors.index.json"
#: Bytes that travel together: large enough that Python's share of the time doesn't show.
CHUNK = 16 << 20
_BUFFERS = 8
#: Bytes behind the writer that may still be on their way to the disk before they are dropped from memory.
_LAG = 128 << 20
_ALIGNMENT = 8


@dataclass(frozen=True)
class Shard:
    """One file of the result and the tensors in it, in order."""

    name: str
    edits: tuple[TensorEdit, ...]

    def header(self) -> bytes:
        """The safetensors header: its length, then JSON, padded with spaces to a multiple of eight bytes."""
        entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        position = 0
        for edit in self.edits:
            end = position + edit.nbytes
            entries[edit.name] = {
                "dtype": edit.dtype,
                "shape": list(edit.shape),
                "data_offsets": [position, end],
            }
            position = end
        text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % _ALIGNMENT)
        return struct.pack("<Q", len(text)) + text


def assign_shards(edits: Sequence[TensorEdit], max_bytes: int) -> list[Shard]:
    """Cut tensors into files of at most ``max_bytes`` (or one tensor), named as transformers names them."""
    groups: list[list[TensorEdit]] = [[]]
    size = 0
    for edit in edits:
        if groups[-1] and size + edit.nbytes > max_bytes:
            groups.append([])
            size = 0
        groups[-1].append(edit)
        size += edit.nbytes
    # wide types first: every tensor then starts at a multiple of its item size
    ordered = [tuple(sorted(group, key=lambda edit: -ITEM_BYTES[edit.dtype])) for group in groups]
    if len(ordered) == 1:
        return [Shard("model.safetensors", ordered[0])]
    total = len(ordered)
    return [Shard(f"model-{i:05d}-of-{total:05d}.safetensors", group) for i, group in enumerate(ordered, 1)]


def shard_index(shards: Sequence[Shard]) -> str:
    """``model.safetensors.index.json`` of several shards."""
    sizes = sum(edit.nbytes for shard in shards for edit in shard.edits)
    parameters = sum(int(np.prod(edit.shape)) for shard in shards for edit in shard.edits)
    names = {edit.name: shard.name for shard in shards for edit in shard.edits}
    data = {"metadata": {"total_parameters": parameters, "total_size": sizes}, "weight_map": names}
    return json.dumps(data, indent=2, sort_keys=True) + "\n"


class Background:
    """A thread that does work in the order in which it was given, at most a few pieces behind.

    Used as a context manager: leaving waits for what was given; the first failure is raised by the next
    ``give``, or when leaving.
    """

    def __init__(self, pending: int = _BUFFERS) -> None:
        self._work: queue.Queue[tuple[Callable[[], None], Callable[[], None]] | None] = queue.Queue(pending)
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="optipfair-hash", daemon=True)

    def _run(self) -> None:
        while (given := self._work.get()) is not None:
            work, then = given
            try:
                if self._failure is None:
                    work()
            except BaseException as error:  # raised again in the thread that gave the work
                self._failure = error
            finally:
                then()  # also after a failure: the other thread may be waiting for just this buffer

    def give(self, work: Callable[[], None], then: Callable[[], None] = lambda: None) -> None:
        """Add a piece of work, and what is called after it, done or not; waits while too many are pending."""
        if self._failure is not None:
            raise self._failure
        self._work.put((work, then))

    def __enter__(self) -> Background:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._work.put(None)
        self._thread.join()
        if kind is None and self._failure is not None:
            raise self._failure


class Buffers:
    """A few reusable buffers of ``CHUNK`` bytes: whatever the tensors' sizes, no more memory is used."""

    def __init__(self, count: int = _BUFFERS) -> None:
        self._free: queue.Queue[np.ndarray[Any, np.dtype[np.uint8]]] = queue.Queue()
        for _ in range(count):
            self._free.put(np.empty(CHUNK, dtype=np.uint8))

    def take(self) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """A buffer; waits until one is free."""
        return self._free.get()

    def give_back(self, buffer: np.ndarray[Any, np.dtype[np.uint8]] | None) -> None:
        """Return a buffer, if it is one."""
        if buffer is not None:
            self._free.put(buffer)


class HashedFile:
    """A file that is written from front to back; the background thread computes its SHA-256."""

    def __init__(self, path: Path, background: Background) -> None:
        self._file = path.open("wb", buffering=0)
        self._background = background
        self._digest = hashlib.sha256()
        self._size = 0
        self._dropped = 0

    def write(self, data: memoryview | bytes, then: Callable[[], None] = lambda: None) -> None:
        """Append ``data``; ``then`` is called when it is no longer needed."""
        view = memoryview(data)
        written = 0
        while written < len(view):
            written += self._file.write(view[written:])
        self._size += written
        self._drop_behind(written)
        self._background.give(lambda: self._digest.update(view), then)

    def _drop_behind(self, written: int) -> None:
        """Start writing out what came last, and drop what is on the disk by now; neither call waits."""
        if not hasattr(os, "posix_fadvise"):  # macOS
            return
        file, end = self._file.fileno(), self._size - _LAG
        os.posix_fadvise(file, self._size - written, written, os.POSIX_FADV_DONTNEED)
        if end > self._dropped:
            os.posix_fadvise(file, self._dropped, end - self._dropped, os.POSIX_FADV_DONTNEED)
            self._dropped = max(0, end - CHUNK)  # again next time: the disk may have been behind

    def result(self) -> Future[tuple[int, str]]:
        """(Size, SHA-256) of all that was written, once the background thread came so far."""
        result: Future[tuple[int, str]] = Future()
        self._background.give(lambda: result.set_result((self._size, self._digest.hexdigest())))
        return result

    def __enter__(self) -> HashedFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
