"""Opaque names to paths under a configured root; nothing outside of the root is ever reached."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class OutsideRootError(ValueError):
    """A name, or a symbolic link behind it, leads out of its root."""


def resolve_named(root: Path, name: str) -> Path:
    """The file or folder called `name` directly under `root`.

    Raises:
        FileNotFoundError: there is none.
        OSError: a link in the folder leads in a circle.
        OutsideRootError: the name is not a plain name, or a link in the folder leaves the root.
    """
    if NAME.fullmatch(name) is None:
        raise OutsideRootError(f"{name!r} is not a plain name")
    top = root.resolve()
    path = resolved(top / name, strict=True)
    check_inside(top, path)
    if path.is_dir():
        for entry in files_under(path):
            check_inside(top, resolved(entry))
    return path


def resolved(path: Path, *, strict: bool = False) -> Path:
    """`Path.resolve`, whose RuntimeError for a circle of links (before Python 3.13) is an OSError here."""
    try:
        return path.resolve(strict=strict)
    except RuntimeError as error:
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path.name) from error


def check_inside(top: Path, path: Path) -> None:
    """Refuse a resolved path outside of the resolved root."""
    if not path.is_relative_to(top):
        raise OutsideRootError(f"{path.name!r} is a link that leaves its folder")


def files_under(folder: Path) -> Iterator[Path]:
    """Every entry below a folder that is not itself a folder, sorted; links to folders count as entries."""
    for parent, folders, files in os.walk(folder):
        folders.sort()
        links = [name for name in folders if Path(parent, name).is_symlink()]
        for name in sorted([*files, *links]):
            yield Path(parent, name)


def names_in(root: Path, *, folders: bool) -> list[str]:
    """The usable names directly under a root: folders (models) or files (suites, calibration texts)."""
    if not root.is_dir():
        return []
    kept = [entry for entry in root.iterdir() if NAME.fullmatch(entry.name) and _inside(root, entry)]
    return sorted(entry.name for entry in kept if (entry.is_dir() if folders else entry.is_file()))


def _inside(root: Path, entry: Path) -> bool:
    try:
        return resolved(entry).is_relative_to(root.resolve())
    except OSError:
        return False
