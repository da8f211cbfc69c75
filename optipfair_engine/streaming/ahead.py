"""Chunks that are made ready by another thread while earlier ones are written."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from types import TracebackType

from optipfair_engine.streaming.edits import TensorEdit
from optipfair_engine.streaming.gather import Chunk
from optipfair_engine.streaming.shards import Buffers

#: A chunk of a tensor, or None behind its last one.
Piece = tuple[TensorEdit, Chunk | None]
#: Pieces that wait to be written.
_READY = 2
_POLL_SECONDS = 0.05


class Ahead:
    """Goes through ``pieces`` in a thread of its own, a few ahead of whoever iterates over it.

    Used as a context manager: leaving early stops the thread and gives back the buffers of what was not
    taken. A failure of ``pieces`` is raised where it would have been without the thread.
    """

    def __init__(self, pieces: Iterator[Piece], buffers: Buffers) -> None:
        self._pieces, self._buffers = pieces, buffers
        self._ready: queue.Queue[Piece | BaseException | None] = queue.Queue(_READY)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="optipfair-gather", daemon=True)

    def _run(self) -> None:
        try:
            for piece in self._pieces:
                self._ready.put(piece)
                if self._stop.is_set():
                    return
            self._ready.put(None)
        except BaseException as error:  # raised again in the thread that takes the pieces
            self._ready.put(error)

    def __iter__(self) -> Iterator[Piece]:
        while (piece := self._ready.get()) is not None:
            if isinstance(piece, BaseException):
                raise piece
            yield piece

    def __enter__(self) -> Ahead:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        while self._thread.is_alive() or not self._ready.empty():
            try:
                piece = self._ready.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                continue
            if isinstance(piece, tuple) and piece[1] is not None:
                self._buffers.give_back(piece[1].buffer)
        self._thread.join()
