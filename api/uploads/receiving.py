"""Bytes of a file as they come in: into the artifact store part by part, in constant memory.

A part is at most 64 MiB. It is recorded as soon as it is durable, so that whatever cuts a transfer (the line,
this process, its machine) costs at most the part under way. Bytes that are there are read and dropped.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import BinaryIO

from fastapi import Request
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from api.context import Services
from api.problem import Problem
from jobs.artifacts import full_disk_is_named
from jobs.errors import StorageError
from jobs.patience import current_budget
from jobs.uploads.rows import PART_NAME, Part, UploadFile, missing

PART_BYTES = 64 * 1024 * 1024
WRITE_BYTES = 1024 * 1024
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)")


@dataclass(frozen=True)
class Stretch:
    """Bytes `first` up to `end` (not included) of a file."""

    first: int
    end: int


def stretch_of(request: Request, file: UploadFile) -> Stretch:
    """Which bytes a request brings.

    Raises:
        Problem: 400 for a Content-Range that can't be read; 422 `upload_size_mismatch` for one that does not
            lie in the declared size, and for a Content-Length that is not the length of what is announced.
    """
    header = request.headers.get("content-range")
    stretch = Stretch(0, file.size) if header is None else _ranged(header, file)
    declared = request.headers.get("content-length")
    length = stretch.end - stretch.first
    if declared is not None and declared.isdigit() and int(declared[:32]) != length:
        raise _mismatch(f"Content-Length is {declared[:32]}, but these are {length} bytes of {file.size}.")
    return stretch


def _ranged(header: str, file: UploadFile) -> Stretch:
    match = _CONTENT_RANGE.fullmatch(header.strip())
    if match is None:
        raise Problem(400, "content_range_invalid", "Content-Range is written as: bytes FIRST-LAST/SIZE.")
    first, last = int(match[1]), int(match[2])
    if last < first or last >= file.size or (match[3] != "*" and int(match[3]) != file.size):
        raise _mismatch(f"The file was declared with {file.size} bytes; this range does not lie in it.")
    return Stretch(first, last + 1)


def _mismatch(detail: str) -> Problem:
    return Problem(422, "upload_size_mismatch", detail, headers={"Connection": "close"})


async def receive(
    services: Services, file: UploadFile, stretch: Stretch, chunks: AsyncIterator[bytes]
) -> None:
    """Store the bytes of a stretch that are missing.

    What came before a connection was cut is kept.

    Raises:
        Problem: 422 `upload_size_mismatch` when more or fewer bytes come than were announced.
    """
    current_budget().lift()  # as long as bytes come
    writer = _Writer(services, file, stretch.first)
    try:
        async for chunk in chunks:
            if writer.place + len(chunk) > stretch.end:
                raise _mismatch("More bytes came than were announced.")
            await writer.take(chunk)
    except ClientDisconnect:
        pass
    finally:
        await writer.close()
    if writer.place < stretch.end:
        raise _mismatch(f"The body ended at byte {writer.place} of {stretch.end}; go on from there.")


class _Writer:
    """Cuts a stream into parts, leaving out what the file has."""

    def __init__(self, services: Services, file: UploadFile, first: int) -> None:
        self._services, self._file = services, file
        self.place = first
        gaps = [(0, 0)] if file.verified else missing(file.parts, first, file.size)
        self._gaps = gaps
        self._buffer = bytearray()
        self._open: _OpenPart | None = None

    async def take(self, chunk: bytes) -> None:
        """The next bytes of the stream."""
        for first, end in self._gaps:
            begin, stop = max(first, self.place), min(end, self.place + len(chunk))
            for place in range(begin, stop, WRITE_BYTES):
                data = chunk[place - self.place : min(place + WRITE_BYTES, stop) - self.place]
                await self._write(place, data)
        self.place += len(chunk)

    async def _write(self, place: int, data: bytes) -> None:
        if self._open is not None and self._open.end + len(self._buffer) != place:
            await self._finish()  # bytes in between were there
        if self._open is None:
            self._open = await run_in_threadpool(_OpenPart.begin, self._services, self._file.blob_id, place)
        self._buffer += data
        if len(self._buffer) >= WRITE_BYTES:
            await self._flush()
        if self._open.size >= PART_BYTES:
            await self._finish()

    async def _flush(self) -> None:
        if self._open is not None and self._buffer:
            data, self._buffer = bytes(self._buffer), bytearray()
            await run_in_threadpool(self._open.write, data)

    async def _finish(self) -> None:
        await self._flush()
        part, self._open = self._open, None
        if part is not None:
            await run_in_threadpool(part.finish)

    async def close(self) -> None:
        """Keep what has come, whatever ended the stream."""
        try:
            await self._finish()
        except BaseException:
            if self._open is not None:
                self._open.discard()
            raise


class _OpenPart:
    """A part under way: a file in a stage folder of the store."""

    def __init__(self, services: Services, blob_id: str, number: int, first: int, file: BinaryIO) -> None:
        self._services, self._blob_id, self._number = services, blob_id, number
        self._first, self._file, self.size = first, file, 0

    @property
    def end(self) -> int:
        """The place behind the last byte that was written."""
        return self._first + self.size

    @classmethod
    def begin(cls, services: Services, blob_id: str, first: int) -> _OpenPart:
        number = services.repository.next_part(blob_id)
        free = services.store.free_bytes() - services.settings.min_free_bytes
        if free < PART_BYTES:
            raise StorageError("too little space is left for uploads", code="storage_full")
        stage = services.store.stage(blob_id, number)
        return cls(services, blob_id, number, first, (stage / PART_NAME).open("wb"))

    def write(self, data: bytes) -> None:
        with full_disk_is_named():
            self._file.write(data)
        self.size += len(data)

    def finish(self) -> None:
        """Make the part durable and record it, or remove it."""
        store, repository = self._services.store, self._services.repository
        added = False
        try:
            with full_disk_is_named():
                self._file.close()
            if self.size:
                store.seal(self._blob_id, self._number, finished_at=repository.now())
                part = Part(self._blob_id, self._number, self._first, self.size)
                added = repository.add_part(part, lambda: store.publish(self._blob_id, self._number))
        finally:
            if not added:
                self.discard()

    def discard(self) -> None:
        self._file.close()
        self._services.store.delete(f"{self._blob_id}/{self._number}")
