"""The folder that a command writes: new, or cleared of nothing but what an earlier run wrote there."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from optipfair_engine.errors import InvalidOptionError

Overwrite = Annotated[
    bool,
    typer.Option(
        "--overwrite",
        help="Replace what an earlier run wrote into the folder; other files in it are never touched.",
    ),
]


@contextmanager
def output_folder(
    target: Path | None, command: str, *, overwrite: bool, sources: Iterable[Path] = ()
) -> Iterator[Path | None]:
    """An empty folder whose files come to ``target`` when the block ends well, and vanish otherwise.

    Whatever lay in ``target`` stays, but for what an earlier run wrote if that may be overwritten. What was
    written is recorded (``checkpoints.written``). None gives None: nothing is to be written.

    Raises:
        InvalidOptionError: ``target`` is a model that is read, or a file, or it isn't empty and may not be
            overwritten, or an earlier run's files in it were changed.
    """
    if target is None:
        yield None
        return
    with filled_folder(target, command, overwrite=overwrite, sources=sources) as folder:
        yield folder


@contextmanager
def filled_folder(
    target: Path, command: str, *, overwrite: bool, sources: Iterable[Path] = ()
) -> Iterator[Path]:
    """:func:`output_folder` of a folder that is always written."""
    from optipfair_engine.checkpoints.written import record_files

    target = target.expanduser().resolve()
    earlier = _replaceable(target, overwrite, sources)
    there = target.is_dir()
    parent = target if there else target.parent  # within a folder, so that it may be a mount of its own
    parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=parent))
    try:
        yield draft
        draft.chmod(0o755)  # mkdtemp makes it private
        record_files(draft, command)
        if there:
            _move(draft, target, earlier)
        else:
            draft.rename(target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def refuse_existing_file(file: Path, *, overwrite: bool) -> None:
    """Refuse to write over a file unless that was asked for.

    Raises:
        InvalidOptionError: it is there.
    """
    if file.exists() and not overwrite:
        raise InvalidOptionError(f"{file.name} is there already: name another, or give --overwrite")


def _replaceable(target: Path, overwrite: bool, sources: Iterable[Path]) -> Mapping[str, object]:
    """The files in ``target`` that may go, which are none if it is new or empty."""
    from optipfair_engine.checkpoints.written import changed_files, recorded_files

    if not target.exists():
        return {}
    if any(target.samefile(source) for source in sources if source.exists()):
        raise InvalidOptionError("the output folder is the model itself; give another one")
    if not target.is_dir():
        raise InvalidOptionError(f"{target.name} is a file, not a folder")
    if not any(target.iterdir()):
        return {}
    earlier = recorded_files(target)
    if earlier is None:
        raise InvalidOptionError(
            f"the folder {target.name} is not empty and holds no earlier result: name a new folder"
        )
    if not overwrite:
        raise InvalidOptionError(
            f"the folder {target.name} holds an earlier result: name a new folder, or give --overwrite to "
            "replace what that run wrote (other files in it stay)"
        )
    if changed := changed_files(target, earlier):
        raise InvalidOptionError(
            f"the folder {target.name}: {', '.join(changed)} changed since the earlier run; move what you "
            "want to keep, remove the rest, or name a new folder"
        )
    return earlier


def _move(draft: Path, target: Path, earlier: Mapping[str, object]) -> None:
    """The draft's files take the places of the earlier ones; a name that is someone else's is refused."""
    from optipfair_engine.checkpoints.written import files_in

    names = files_in(draft)
    foreign = [name for name in names if name not in earlier and _taken(target, name)]
    if foreign:
        kept = Path(tempfile.mkdtemp(prefix=f"{target.name}-", dir=target.parent))
        for entry in draft.iterdir():
            shutil.move(entry, kept)
        raise InvalidOptionError(
            f"the folder {target.name}: no earlier run wrote {', '.join(foreign)}, which stays as it is; "
            f"the result was written to {kept}"
        )
    for name in set(earlier) - set(names):
        (target / name).unlink(missing_ok=True)
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (draft / name).replace(target / name)


def _taken(target: Path, name: str) -> bool:
    """Whether something lies at a name, or a file where the name has a folder."""
    path = target / name
    blocked = any(part.exists() and not part.is_dir() for part in path.parents if part != target)
    return blocked or path.exists() or path.is_symlink()
