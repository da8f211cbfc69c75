"""Published suite files into a suites folder: only what can be checked, and only whole."""

from __future__ import annotations

import hashlib
import os
import tempfile
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, urlsplit

from optipfair_engine.errors import InvalidOptionError, SuiteDataError
from optipfair_engine.options.suites import SuiteEntry, SuiteFile, how_to_get, place_of
from optipfair_engine.progress import Reporter, null_reporter

if TYPE_CHECKING:
    import httpx

_TIMEOUT_SECONDS: Final = 30.0


def fetch_suite(
    entry: SuiteEntry, folder: Path, *, mirror: str | None = None, report: Reporter = null_reporter
) -> list[Path]:
    """The files of a suite, each fetched unless it is there already; where they lie.

    A file is written beside its place and appears by one rename, once its SHA-256 is right. It is asked for
    by https (of this machine itself, also http), no redirect is followed, and no more bytes are read than
    the entry says that it has.

    Args:
        entry: whose files are wanted.
        folder: the suites folder; the files go into a folder of the suite's name.
        mirror: where ``SUITE/FILE`` is found, instead of where the suite is published.
        report: progress, a file at a time; the stage is "load".

    Raises:
        SuiteDataError: a file has no known SHA-256, can't be fetched, or is another one; the text says which
            file to put where.
        InvalidOptionError: the mirror's address may not be called.
    """
    if not entry.files:
        raise InvalidOptionError(f"The suite {entry.name} has no files to fetch: it is part of this project")
    if not entry.fetchable:
        raise SuiteDataError(
            f"The files of {entry.name} can't be checked here (no SHA-256 of theirs is known), so they are "
            f"not fetched: {how_to_get(entry, folder)}"
        )
    return [
        place_of(entry, file, folder) or _fetch(entry, file, folder, mirror, number, report)
        for number, file in enumerate(entry.files)
    ]


def _fetch(
    entry: SuiteEntry, file: SuiteFile, folder: Path, mirror: str | None, number: int, report: Reporter
) -> Path:
    import httpx

    url = file.url if mirror is None else f"{mirror.rstrip('/')}/{entry.name}/{quote(file.name)}"
    check_address(url)
    report("load", number, len(entry.files), f"fetching {file.name}")
    try:
        with httpx.Client(follow_redirects=False, timeout=_TIMEOUT_SECONDS) as client:
            content = _content(client, url, file)
    except httpx.HTTPError as error:
        reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise _not_fetched(entry, file, folder, reason) from error
    except _WrongAnswerError as error:
        raise _not_fetched(entry, file, folder, str(error)) from None
    target = folder / entry.name / file.name
    try:
        _write(content, target)
    except OSError as error:
        raise _not_fetched(entry, file, folder, f"it can't be written: {error.strerror}") from error
    report("load", number + 1, len(entry.files), f"fetched {file.name}")
    return target


def check_address(url: str) -> None:
    """Refuse any address but https, or http of this machine itself.

    Raises:
        InvalidOptionError: another one, or one with a user's name or password.
    """
    parts = urlsplit(url)
    own = parts.scheme == "http" and _is_own(parts.hostname or "")
    if not parts.hostname or parts.username is not None or (parts.scheme != "https" and not own):
        raise InvalidOptionError(
            f"Suites are fetched by https alone, without a user's name in the address; got {parts.scheme}:"
        )


def _is_own(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class _WrongAnswerError(Exception):
    """What came is not the file."""


def _content(client: httpx.Client, url: str, file: SuiteFile) -> bytes:
    content = bytearray()
    with client.stream("GET", url) as response:
        if response.status_code != 200:
            raise _WrongAnswerError(f"the answer's status is {response.status_code}")
        for part in response.iter_bytes():
            content += part
            if file.size is not None and len(content) > file.size:
                raise _WrongAnswerError(f"it is longer than {file.size:,} bytes")
    found = hashlib.sha256(content).hexdigest()
    if found != file.sha256:
        raise _WrongAnswerError(f"its SHA-256 is {found}, not {file.sha256}")
    return bytes(content)


def _not_fetched(entry: SuiteEntry, file: SuiteFile, folder: Path, reason: str) -> SuiteDataError:
    return SuiteDataError(
        f"{file.name} of {entry.name} was not fetched ({reason}). Without a network: "
        f"put {file.name} (from {entry.page}) into {folder / entry.name}"
    )


def _write(content: bytes, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    number, draft = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(number, "wb") as handle:
            handle.write(content)
        path = Path(draft)
        path.chmod(0o644)  # mkstemp makes it private
        path.replace(target)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise
