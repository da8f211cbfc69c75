"""Uploads as frozen values, and which bytes of a file have arrived."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from jobs.rows import JsonObject, storage_of

PART_NAME = "part"
"""What the one file in a part's folder in the artifact store is called."""


@dataclass(frozen=True)
class Part:
    """Some bytes of a file: `size` of them, from `first`."""

    blob_id: str
    number: int
    first: int
    size: int

    @property
    def end(self) -> int:
        """The place behind its last byte."""
        return self.first + self.size

    @property
    def storage(self) -> str:
        """Where the artifact store keeps it."""
        return storage_of(self.blob_id, self.number)


@dataclass(frozen=True)
class UploadFile:
    """A declared file; its parts are sorted by `first` and do not overlap."""

    name: str
    blob_id: str
    size: int
    sha256: str
    verified: bool
    parts: tuple[Part, ...] = ()

    @property
    def offset(self) -> int:
        """The first byte that is missing; the size when none is."""
        place = 0
        for part in self.parts:
            if part.first > place:
                break
            place = part.end
        return place

    @property
    def whole(self) -> bool:
        """Whether every byte has arrived."""
        return self.offset >= self.size

    @property
    def state(self) -> str:
        """`missing`, `partial` or `here`."""
        if self.whole:
            return "here"
        return "partial" if self.parts else "missing"


@dataclass(frozen=True)
class Upload:
    """Files under one name; usable once it is complete."""

    id: str
    tenant: str
    kind: str
    name: str
    state: str
    created_at: int
    completed_at: int | None
    expires_at: int
    files: tuple[UploadFile, ...] = ()
    facts: JsonObject | None = field(default=None)

    @property
    def complete(self) -> bool:
        """Whether it may be named in a job."""
        return self.state == "complete"

    def file(self, name: str) -> UploadFile | None:
        """The file of that name."""
        return next((file for file in self.files if file.name == name), None)


def missing(parts: Iterable[Part], first: int, end: int) -> list[tuple[int, int]]:
    """The stretches of `first`…`end` that no part covers, as (first, end); parts sorted by `first`."""
    found: list[tuple[int, int]] = []
    place = first
    for part in parts:
        if part.end <= place:
            continue
        if part.first >= end:
            break
        if part.first > place:
            found.append((place, part.first))
        place = part.end
    if place < end:
        found.append((place, end))
    return found


def overlaps(parts: Sequence[Part], first: int, end: int) -> bool:
    """Whether any part holds a byte of `first`…`end`."""
    return any(part.first < end and first < part.end for part in parts)
