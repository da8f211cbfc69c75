"""``optipfair_manifest.json``: where a pruned checkpoint comes from, and the SHA-256 of each of its files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from optipfair_engine.errors import ReloadCheckError
from optipfair_engine.headers import model_revision
from optipfair_engine.options.words import VerifyLevel

MANIFEST_NAME = "optipfair_manifest.json"

_FORMAT = "optipfair-manifest/1"
_PACKAGES = ("optipfair-service", "torch", "transformers", "safetensors")


@dataclass(frozen=True)
class SourceInfo:
    """The model that was pruned: its name, and its commit on the hub or the hash of its files."""

    name: str
    revision: str | None = None

    @classmethod
    def of(cls, path: Path | str) -> SourceInfo:
        """Name and revision of a local model; without a commit every byte is read (a second a gigabyte)."""
        stated = cls.stated(path)
        return stated if stated.revision else cls(stated.name, model_revision(Path(path)))

    @classmethod
    def stated(cls, path: Path | str) -> SourceInfo:
        """What the path alone says: the name, and the commit if it is one of a hub cache."""
        folder = _real(path)
        return cls(model_name(folder), folder.name if _in_hub_cache(folder) else None)


def model_name(path: Path | str) -> str:
    """A local model's name: that of its folder or file; of a commit in a hub cache, ``owner/name``."""
    folder = _real(path)
    if not _in_hub_cache(folder):
        return folder.name
    return folder.parent.parent.name.removeprefix("models--").replace("--", "/")


def _real(path: Path | str) -> Path:
    """The folder that a link leads to; a file keeps its name, which in a hub cache links to a hash."""
    return Path(path).resolve() if Path(path).is_dir() else Path(path).absolute()


def _in_hub_cache(folder: Path) -> bool:
    """Whether it is ``models--owner--name/snapshots/<commit>``."""
    return folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--")


@dataclass(frozen=True)
class FileEntry:
    """One file of the checkpoint."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What the manifest says.

    ``reload_check`` is the level that passed: ``none`` (not checked), ``structure`` or ``logits``.
    ``measured`` holds perplexities (metric → value), where there was text to measure them on. ``execution``
    (``memory`` or ``streamed``) and its reason say how the prune was carried out; ``compute_dtype`` is the
    number type of the forward passes that measured and chose, if there were any. Files of earlier versions
    lack the last three.
    """

    source: SourceInfo | None
    plan: Mapping[str, Any] | None
    reload_check: VerifyLevel = "none"
    files: Mapping[str, FileEntry] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    measured: Mapping[str, float] = field(default_factory=dict)
    execution: str | None = None
    execution_reason: str | None = None
    compute_dtype: str | None = None

    def write(self, folder: Path) -> None:
        """Write it to ``folder``; the same content gives the same bytes."""
        text = json.dumps({"format": _FORMAT, **asdict(self)}, indent=2, sort_keys=True, allow_nan=False)
        (folder / MANIFEST_NAME).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """The manifest of ``folder``.

        Raises:
            ReloadCheckError: missing or malformed.
        """
        try:
            data = json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
            source = SourceInfo(**data["source"]) if data["source"] else None
            files = {name: FileEntry(**entry) for name, entry in data["files"].items()}
            return cls(
                source,
                data["plan"],
                data["reload_check"],
                files,
                data["versions"],
                data.get("measured", {}),
                data.get("execution"),
                data.get("execution_reason"),
                data.get("compute_dtype"),
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ReloadCheckError(
                f"{MANIFEST_NAME} is missing or malformed: {type(error).__name__}"
            ) from error


def package_versions() -> dict[str, str]:
    """The versions of what made the checkpoint."""
    return {name: version(name) for name in _PACKAGES}


def hash_file(path: Path) -> FileEntry:
    """Size and SHA-256 of a file."""
    with path.open("rb") as stream:
        return FileEntry(path.stat().st_size, hashlib.file_digest(stream, "sha256").hexdigest())


def hash_folder(folder: Path) -> dict[str, FileEntry]:
    """Every file directly in ``folder``, but the manifest, in name order."""
    files = sorted(entry for entry in folder.iterdir() if entry.is_file() and entry.name != MANIFEST_NAME)
    return {file.name: hash_file(file) for file in files}


def check_hashes(folder: Path, manifest: Manifest) -> None:
    """Every file that the manifest names is there, with its size and SHA-256.

    Raises:
        ReloadCheckError: names the first file that differs.
    """
    for name, expected in manifest.files.items():
        path = folder / name
        if not path.is_file() or hash_file(path) != expected:
            raise ReloadCheckError(f"{name} is not the file that the manifest names")
