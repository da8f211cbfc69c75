"""``optipfair_files.json``: which files of a folder a run wrote, so that only those are ever replaced."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Final

from optipfair_engine.checkpoints.manifest import MANIFEST_NAME, FileEntry, Manifest, hash_file
from optipfair_engine.errors import InvalidOptionError, ReloadCheckError

RECORD_NAME: Final = "optipfair_files.json"
_FORMAT = "optipfair-files/1"
#: What earlier versions wrote beside a manifest that doesn't name it.
_UNNAMED = (MANIFEST_NAME, "metrics.json")


def files_in(folder: Path) -> list[str]:
    """The files of a folder and of those within it, relative to it, sorted."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())


def record_files(folder: Path, command: str) -> None:
    """Write down every file that is in ``folder`` now, with size and SHA-256, and which command made it.

    What a manifest in it says of a file of that size is taken over: the run that wrote both hashed the
    weights as it wrote them, and reading gigabytes again would take longer than pruning.
    """
    known = Manifest.read(folder).files if (folder / MANIFEST_NAME).is_file() else {}
    files = {}
    for name in files_in(folder):
        stated = known.get(name)
        if name != RECORD_NAME:
            same = stated is not None and stated.size == (folder / name).stat().st_size
            files[name] = asdict(stated if same and stated is not None else hash_file(folder / name))
    text = json.dumps({"format": _FORMAT, "command": command, "files": files}, indent=2, sort_keys=True)
    (folder / RECORD_NAME).write_text(text + "\n", encoding="utf-8")


def recorded_command(folder: Path) -> str | None:
    """The command that wrote a folder; None if no record says so."""
    return None if not (folder / RECORD_NAME).is_file() else str(_read(folder)["command"])


def recorded_files(folder: Path) -> dict[str, FileEntry | None] | None:
    """What an earlier run wrote into a folder: name → size and hash, None where they were not noted.

    Earlier versions kept no record, but a pruned checkpoint has its manifest.

    Returns:
        None if no earlier run is known.

    Raises:
        InvalidOptionError: the record is malformed.
    """
    if (folder / RECORD_NAME).is_file():
        return {**_entries(folder, _read(folder)["files"]), RECORD_NAME: None}
    if not (folder / MANIFEST_NAME).is_file():
        return None
    try:
        return {**Manifest.read(folder).files, **dict.fromkeys(_UNNAMED)}
    except ReloadCheckError as error:
        raise InvalidOptionError(f"what lies in {folder.name} is not known: {error}") from error


def changed_files(folder: Path, files: Mapping[str, FileEntry | None]) -> list[str]:
    """The files that are no longer what was written; those that are gone don't count."""
    there = {name: entry for name, entry in files.items() if entry and (folder / name).is_file()}
    return [name for name, entry in there.items() if hash_file(folder / name) != entry]


def _read(folder: Path) -> dict[str, object]:
    try:
        data = json.loads((folder / RECORD_NAME).read_text(encoding="utf-8"))
        if data["format"] != _FORMAT:
            raise ValueError("another format")
        return {"command": data["command"], "files": data["files"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _malformed(folder) from error


def _entries(folder: Path, files: object) -> dict[str, FileEntry | None]:
    """The entries of a record; a name that leads out of the folder is none."""
    try:
        found = {name: FileEntry(**entry) for name, entry in files.items()}  # type: ignore[attr-defined]
    except (TypeError, AttributeError) as error:
        raise _malformed(folder) from error
    if any(Path(name).is_absolute() or ".." in Path(name).parts for name in found):
        raise _malformed(folder)
    return dict(found)


def _malformed(folder: Path) -> InvalidOptionError:
    return InvalidOptionError(f"{RECORD_NAME} in {folder.name} is malformed: name another folder")
