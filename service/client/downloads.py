"""Files of a job on this disk: fetched piece by piece, resumed where they were cut, checked by SHA-256."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import httpx

from service.client.connection import LATER, Connection, asked, checked
from service.client.errors import DownloadError
from service.client.types import Artifact

OnBytes = Callable[[str, int, int], None]
"""Told (name, bytes here, bytes in all) of every piece."""
_PART = ".part"


def fetch(
    connection: Connection,
    artifacts: Sequence[Artifact],
    folder: Path,
    names: Sequence[str] | None = None,
    on_bytes: OnBytes | None = None,
) -> list[Path]:
    """Fetch files into `folder`, which is made; files that are there already as they should be stay.

    Raises:
        DownloadError: an unknown or unsafe name, a folder that can't be written, a file that stays wrong.
    """
    wanted = _chosen(artifacts, names)
    for artifact in wanted:
        _check_name(artifact["name"])
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return [_Fetching(connection, artifact, folder, on_bytes).run() for artifact in wanted]
    except OSError as error:
        raise DownloadError(f"{folder}: {error.strerror or error}") from None


def _chosen(artifacts: Sequence[Artifact], names: Sequence[str] | None) -> list[Artifact]:
    if not names:
        return list(artifacts)
    known = {artifact["name"]: artifact for artifact in artifacts}
    if missing := [name for name in names if name not in known]:
        raise DownloadError(f"the job has no file {', '.join(missing)}; it has {', '.join(known) or 'none'}")
    return [known[name] for name in names]


def _check_name(name: str) -> None:
    """Refuse a name that would lead out of the folder, whoever gave it."""
    if name in ("", ".", "..") or any(c in "/\\:" or not c.isprintable() for c in name):
        raise DownloadError(f"a file can't be called {name!r}")


class _Fetching:
    """One file on its way."""

    def __init__(
        self, connection: Connection, artifact: Artifact, folder: Path, on_bytes: OnBytes | None
    ) -> None:
        self._connection, self._on_bytes = connection, on_bytes
        self._name, self._size, self._sha256 = artifact["name"], artifact["size"], artifact["sha256"]
        self._path = artifact["links"]["self"]
        self._target = folder / self._name
        self._part = folder / (self._name + _PART)

    def run(self) -> Path:
        """Fetch it; what is here from an earlier try is kept if it turns out right."""
        if self._here(self._target) == self._size and self._is_right(self._target):
            self._tell(self._size)
            return self._target
        fresh = self._here(self._part) == 0
        self._fill()
        if not self._is_right(self._part) and not fresh:
            self._part.unlink()  # what an earlier try left was of another file
            self._fill()
        if not self._is_right(self._part):
            self._part.unlink()
            raise DownloadError(f"{self._name} did not arrive as the service has it: its SHA-256 is wrong")
        self._part.replace(self._target)
        return self._target

    def _fill(self) -> None:
        """Bring the part to its full size, over as many connections as it takes."""
        patience = self._connection.patience()
        if self._here(self._part) > self._size:
            self._part.unlink()
        self._part.touch()
        while (before := self._here(self._part)) < self._size:
            try:
                later = self._piece(before)
            except httpx.TransportError as error:
                if self._here(self._part) > before:
                    patience.renew()
                if not patience.pause():
                    raise self._connection.unreachable(error) from None
            else:
                if self._here(self._part) > before:
                    patience.renew()
                elif not patience.pause(later):
                    raise DownloadError(f"{self._name}: the service gives no more of it")

    def _piece(self, start: int) -> float | None:
        """Ask for the rest once; returns what Retry-After asks for."""
        headers = {"Accept-Encoding": "identity"}
        if start:
            headers |= {"Range": f"bytes={start}-", "If-Range": f'"sha256-{self._sha256}"'}
        with self._connection.stream(self._path, headers) as response:
            if response.status_code in LATER:
                return asked(response.headers)
            if not response.is_success:
                response.read()
                checked(response)
            resumed = response.status_code == httpx.codes.PARTIAL_CONTENT
            with self._part.open("ab" if resumed else "wb") as file:
                for piece in response.iter_raw():
                    file.write(piece)
                    self._tell(file.tell())
        return None

    def _is_right(self, path: Path) -> bool:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == self._sha256

    def _tell(self, count: int) -> None:
        if self._on_bytes is not None:
            self._on_bytes(self._name, count, self._size)

    @staticmethod
    def _here(path: Path) -> int:
        return path.stat().st_size if path.is_file() else 0
