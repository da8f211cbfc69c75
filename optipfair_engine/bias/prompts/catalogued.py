"""The items of the catalogue's suites, from the files of a suites folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from optipfair_engine.bias.prompts.bbq import read_bbq
from optipfair_engine.bias.prompts.honest import read_honest
from optipfair_engine.bias.prompts.own.items import own_items
from optipfair_engine.bias.prompts.pronouns import read_winobias, read_winogender
from optipfair_engine.bias.prompts.suites import CrowsItem, StereoItem, read_suite
from optipfair_engine.errors import InvalidOptionError, SuiteDataError
from optipfair_engine.options.suites import SuiteEntry, entry_of, how_to_get, missing_files, place_of


def read_catalogued(name: str, folder: Path) -> Any:
    """The items of one suite of the catalogue.

    Raises:
        SuiteDataError: a file is missing; the text says which, and where it belongs.
        InvalidOptionError: a file can't be read as this suite.
    """
    entry = entry_of(name)
    missing = missing_files(entry, folder)
    if missing:
        names = ", ".join(file.name for file in missing)
        raise SuiteDataError(
            f"The data of the suite {name} are not in {folder} ({names}): {how_to_get(entry, folder)}"
        )
    places = [place_of(entry, file, folder) for file in entry.files]
    return _READERS[entry.reader](entry, [path for path in places if path is not None])


def _preferences(entry: SuiteEntry, paths: Sequence[Path]) -> Any:
    items, wanted = read_suite(paths[0]), CrowsItem if entry.name == "crows_pairs" else StereoItem
    if not isinstance(items[0], wanted):
        raise InvalidOptionError(f"{paths[0].name} is not {entry.title}: it holds items of another kind")
    return items


_READERS: Final[Mapping[str, Callable[[SuiteEntry, Sequence[Path]], Any]]] = {
    "bbq": lambda _entry, paths: read_bbq(paths),
    "honest": lambda _entry, paths: read_honest(paths),
    "own": lambda entry, _paths: own_items(entry.name),
    "preferences": _preferences,
    "winobias": lambda _entry, paths: read_winobias(paths),
    "winogender": lambda _entry, paths: read_winogender(paths),
}
