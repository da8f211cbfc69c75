"""Sending files: hashed, declared, sent from the first byte that the service misses, and completed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx

from jobs.uploads.declaring import SUFFIXES
from service.client.connection import LATER, Connection
from service.client.errors import ClientError, RefusedError, UnreachableError

OnBytes = Callable[[str, int, int], None]
"""Told (name, bytes sent, bytes in all) of every piece."""
CHUNK_BYTES = 1024 * 1024
CHECKING_SECONDS = 600.0
"""How long the service may take to hash a large model."""
_KINDS = {"model": "model", "baseline": "model", "suite": "suite"}


def send(
    connection: Connection, kind: str, name: str, paths: Sequence[Path], on_bytes: OnBytes | None = None
) -> dict[str, Any]:
    """Upload files, or all files of folders that belong to such an upload; the completed upload.

    Raises:
        ClientError: a file that can't be read, or nothing to send.
        RefusedError, UnreachableError: the service's answer, or that there is none.
    """
    files = {path.name: path for path in chosen(kind, paths)}
    try:
        listed = [{"name": n, "size": p.stat().st_size, "sha256": _sha256(p)} for n, p in files.items()]
        body = {"kind": kind, "name": name, "files": listed}
        upload = connection.send("POST", "/v1/uploads", json=body, again=False).json()
        base = f"/v1/uploads/{upload['id']}"
        for file in upload["files"]:
            if file["state"] != "here":
                _send_file(connection, f"{base}/files/{file['name']}", files[file["name"]], on_bytes)
    except OSError as error:
        raise ClientError(f"{error.filename}: {error.strerror or error}") from None
    done = connection.send("POST", f"{base}/complete", held=CHECKING_SECONDS)
    return dict(done.json())


def chosen(kind: str, paths: Sequence[Path]) -> list[Path]:
    """The files of a call: those that are named, and of folders those of a type that such an upload takes."""
    if kind not in SUFFIXES:
        raise ClientError(f"there is no kind {kind!r} of upload; there are {', '.join(SUFFIXES)}")
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = (file for file in sorted(path.iterdir()) if file.is_file())
            found += [file for file in inside if _belongs(kind, file)]
        else:
            found.append(path)
    if not found:
        raise ClientError(f"no file of {', '.join(map(str, paths))} belongs to a {kind}")
    names = [path.name for path in found]
    if len(set(names)) < len(names):
        raise ClientError("two files have the same name: an upload has no folders")
    return found


def _belongs(kind: str, file: Path) -> bool:
    return file.suffix.lower() in SUFFIXES[kind] and not file.name.startswith(".")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _send_file(connection: Connection, url: str, path: Path, on_bytes: OnBytes | None) -> None:
    """Send what is missing, and again after every cut; progress renews the patience."""
    size, patience, before = path.stat().st_size, connection.patience(), -1
    while True:
        first = int(connection.send("HEAD", url).headers["Upload-Offset"])
        if first >= size:
            return
        if first > before:
            patience.renew()
        before = first
        headers = {"Content-Range": f"bytes {first}-{size - 1}/{size}", "Content-Length": str(size - first)}
        try:
            pieces = _pieces(path, first, size, on_bytes)
            connection.send("PUT", url, again=False, held=CHECKING_SECONDS, content=pieces, headers=headers)
        except UnreachableError:
            if not patience.pause():
                raise
        except RefusedError as refusal:
            if refusal.status not in LATER or not patience.pause():
                raise
        except httpx.HTTPError as error:  # the file became shorter while it was sent
            raise ClientError(f"{path}: {error}") from None


def _pieces(path: Path, first: int, size: int, on_bytes: OnBytes | None) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(first)
        while piece := file.read(min(CHUNK_BYTES, size - first)):
            first += len(piece)
            yield piece
            if on_bytes is not None:
                on_bytes(path.name, first, size)


def resolve(request: Mapping[str, Any], folder: Path, upload: Callable[[str, Path], str]) -> dict[str, Any]:
    """A job's body in which each `{"upload": "./path"}` is what it names, uploaded.

    Args:
        request: the body of a job.
        folder: what relative paths are relative to.
        upload: uploads (kind, path) and returns the id; called once for each path.
    """
    known: dict[tuple[str, Path], str] = {}

    def walk(value: Any, kind: str) -> Any:
        if isinstance(value, list):
            return [walk(item, kind) for item in value]
        if not isinstance(value, dict):
            return value
        if isinstance(value.get("upload"), str):
            place = (kind, folder / value["upload"])
            if place not in known:
                known[place] = upload(*place)
            rest = {name: item for name, item in value.items() if name != "upload"}
            return {"source": "upload", "id": known[place], **rest}
        return {name: walk(item, _KINDS.get(name, "calibration")) for name, item in value.items()}

    return {**request, "spec": walk(request["spec"], "model")} if "spec" in request else dict(request)
