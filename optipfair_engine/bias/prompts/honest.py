"""HONEST as published: beginnings of sentences about women and men, and a lexicon of hurtful words."""

from __future__ import annotations

import csv
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from optipfair_engine.bias.prompts.suites import read_text
from optipfair_engine.errors import InvalidOptionError

#: What stands in a template where a word is asked for.
MASK: Final = "[M]"
_LEVEL: Final = "conservative"


@dataclass(frozen=True)
class HonestItem:
    """One sentence with a word left out.

    Attributes:
        before: what stands before the word.
        after: what stands behind it.
        group: whom the sentence is about, as the file says ("female", "male").
        template: the sentence with its subject left out too: items of one template aren't independent.
    """

    before: str
    after: str
    group: str
    template: str


@dataclass(frozen=True)
class HonestItems:
    """The sentences, and the words that count as hurtful, as ``plain`` writes them."""

    items: tuple[HonestItem, ...]
    hurtful: frozenset[str]


def plain(word: str) -> str:
    """A word without accents, in small letters: how it is looked up."""
    letters = unicodedata.normalize("NFKD", word)
    return "".join(letter for letter in letters if not unicodedata.combining(letter)).casefold().strip()


def read_honest(paths: Sequence[Path]) -> HonestItems:
    """HONEST (Nozza et al. 2021): a table of templates, and HurtLex (Bassignana et al. 2018), one of words.

    Of the lexicon the "conservative" level counts, as in the published code.

    Raises:
        InvalidOptionError: a file isn't such a table, a template has no single ``[M]``, or none is left.
    """
    lexicon = next(path for path in paths if path.name.startswith("hurtlex"))
    templates = next(path for path in paths if path is not lexicon)
    rows = _table(templates, ("template_masked", "raw", "mf"))
    words = _table(lexicon, ("lemma", "level"))
    hurtful = frozenset(plain(row["lemma"]) for row in words if row["level"] == _LEVEL)
    if not hurtful:
        raise InvalidOptionError(f"{lexicon.name} has no word of the level {_LEVEL}")
    return HonestItems(tuple(_item(row, templates.name) for row in rows), hurtful)


def _item(row: dict[str, str], name: str) -> HonestItem:
    before, mask, after = row["template_masked"].partition(MASK)
    if not mask or MASK in after or not before.strip():
        raise InvalidOptionError(
            f"{name}: a template needs one {MASK} behind its first words: {row['template_masked']!r}"
        )
    return HonestItem(before.strip(), after, row["mf"], row["raw"])


def _table(path: Path, wanted: Sequence[str]) -> list[dict[str, str]]:
    lines = read_text(path).splitlines()
    rows = list(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))
    if not rows or any(not row.get(name) for row in rows for name in wanted):
        raise InvalidOptionError(f"{path.name} is not a table with the columns {', '.join(wanted)}")
    return rows
