"""One uncompressed tar of all files of a job, never stored: computed from the rows, readable from any offset.

PAX format, files sorted by path, one folder named after the job that made them, mtime = that job's
`finished_at`, no owner. In a pipeline's folder there is one a step, whose files have the names that
transformers expects. So the archive's bytes follow from the artifacts alone, and ranges and digests of it are
as firm as those of a file.
"""

from __future__ import annotations

import tarfile
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from jobs.rows import Artifact

ReadRange = Callable[[str, int, int], Iterator[bytes]]
"""(name of the artifact, start, length) → its bytes."""


@dataclass(frozen=True)
class _Segment:
    offset: int
    length: int
    data: bytes | None  # None: the bytes of the artifact `name`
    name: str = ""


class ArchivePlan:
    """The layout of a job's tar: where each header and each file begins."""

    def __init__(self, folder: str, mtime: int, files: Sequence[tuple[str, str, int]]) -> None:
        """`folder`: its one top folder; `mtime`: seconds since the epoch; `files`: (path, name, bytes)."""
        self._segments: list[_Segment] = []
        self.size = 0
        self._add(_header(f"{folder}/", 0, mtime, folder=True))
        inner = ""
        for path, name, size in sorted(files):
            parent = path.rpartition("/")[0]
            if parent != inner and parent:
                self._add(_header(f"{folder}/{parent}/", 0, mtime, folder=True))
            inner = parent
            self._add(_header(f"{folder}/{path}", size, mtime))
            self._segments.append(_Segment(self.size, size, None, name))
            self.size += size
            self._add(bytes(-size % tarfile.BLOCKSIZE))
        self._add(bytes(2 * tarfile.BLOCKSIZE))
        self._add(bytes(-self.size % tarfile.RECORDSIZE))
        self._offsets = [segment.offset for segment in self._segments]

    @classmethod
    def of(cls, artifacts: Sequence[Artifact]) -> ArchivePlan:
        """The archive of published artifacts (at least one; all of one storage folder)."""
        folder = artifacts[0].storage.split("/", 1)[0]
        mtime = artifacts[0].published_at // 1000
        return cls(folder, mtime, [(item.path, item.name, item.size) for item in artifacts])

    def _add(self, data: bytes) -> None:
        if data:
            self._segments.append(_Segment(self.size, len(data), data))
            self.size += len(data)

    def read(self, start: int, length: int, read_range: ReadRange) -> Iterator[bytes]:
        """Stream `length` bytes of the archive from `start`.

        The first file that is touched is opened at once, so that a missing one is an error here and not in
        the middle of the stream.
        """
        parts = list(self._parts(start, min(start + length, self.size)))
        opened: dict[int, Iterator[bytes]] = {}
        for number, (segment, first, count) in enumerate(parts):
            if segment.data is None:
                opened[number] = read_range(segment.name, first, count)
                break
        return _stream(parts, opened, read_range)

    def _parts(self, start: int, end: int) -> Iterator[tuple[_Segment, int, int]]:
        """The segments that a range touches: (segment, first byte within it, number of bytes)."""
        index = max(bisect_right(self._offsets, start) - 1, 0)
        for segment in self._segments[index:]:
            if segment.offset >= end:
                return
            first = max(start - segment.offset, 0)
            count = min(end - segment.offset, segment.length) - first
            if count > 0:
                yield segment, first, count


def paths_of_steps(names: Iterable[str], steps: Collection[str]) -> dict[str, str]:
    """Where the files of a pipeline lie in its archive: `step.file` as `step/file`, by name.

    The pipeline's own metrics.json stays where it is, even if a step is named "metrics".
    """
    parts = ((name, *name.split(".", 1)) for name in names if "." in name and name != "metrics.json")
    return {name: f"{step}/{file}" for name, step, file in parts if step in steps}


def _stream(
    parts: list[tuple[_Segment, int, int]], opened: dict[int, Iterator[bytes]], read_range: ReadRange
) -> Iterator[bytes]:
    for number, (segment, first, count) in enumerate(parts):
        if segment.data is not None:
            yield segment.data[first : first + count]
        else:
            yield from opened.pop(number, None) or read_range(segment.name, first, count)


def _header(path: str, size: int, mtime: int, *, folder: bool = False) -> bytes:
    info = tarfile.TarInfo(path)
    info.size = size
    info.mtime = mtime
    info.mode = 0o755 if folder else 0o644
    info.type = tarfile.DIRTYPE if folder else tarfile.REGTYPE
    return info.tobuf(format=tarfile.PAX_FORMAT, encoding="utf-8", errors="strict")
