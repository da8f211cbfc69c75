"""WinoBias and Winogender as published: sentences about an occupation that differ in a pronoun's gender."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

from optipfair_engine.bias.prompts.suites import read_text
from optipfair_engine.errors import InvalidOptionError

Gender = Literal["female", "male"]
_GENDERS: Final[Mapping[str, Gender]] = {
    **dict.fromkeys(("she", "her", "hers", "herself"), "female"),
    **dict.fromkeys(("he", "him", "his", "himself"), "male"),
}


@dataclass(frozen=True)
class PronounItem:
    """Two sentences that differ in pronouns only.

    Attributes:
        pro: the sentence whose pronoun fits the occupation's stereotype.
        anti: the other one.
        gender: of the pronoun in ``pro``.
        occupation: whom the stereotype is about.
        kind: ``type1`` or ``type2`` of WinoBias; of Winogender whose the pronoun is, the ``occupation``'s or
            the ``participant``'s.
        template: what items that aren't independent have in common.
        percent_female: of the people in the occupation, where the suite says.
    """

    pro: str
    anti: str
    gender: Gender
    occupation: str
    kind: str
    template: str
    percent_female: float | None = None


@dataclass(frozen=True)
class PronounItems:
    """Items, and how many of the published ones could not be used, by reason."""

    items: tuple[PronounItem, ...]
    left_out: Mapping[str, int]


# WinoBias

_NUMBER: Final = re.compile(r"^\s*\d+\s+")
_MARKED: Final = re.compile(r"\[([^\]]*)\]")


def read_winobias(paths: Sequence[Path]) -> PronounItems:
    """WinoBias (Zhao et al. 2018): files of sentences with ``[the nurse]`` and ``[she]`` marked.

    Line n of a file ``pro_stereotyped_…`` and of the ``anti_stereotyped_…`` of the same ending belong
    together. Items about the same two occupations are wordings of one scene: they share a template.

    Raises:
        InvalidOptionError: the two files have different numbers of lines, or a line has no marked pronoun.
    """
    pros = [path for path in paths if path.name.startswith("pro_")]
    by_name = {path.name: path for path in paths}
    items: list[PronounItem] = []
    different = 0
    for pro in pros:
        anti = by_name[pro.name.replace("pro_", "anti_", 1)]
        for found in _both(pro, anti):
            different += found is None
            items += [] if found is None else [found]
    known = sorted({item.occupation for item in items}, key=len, reverse=True)
    named = tuple(replace(item, template=_scene(item.pro, known)) for item in items)
    left_out = {"whose two sentences differ in more than pronouns": different} if different else {}
    return PronounItems(named, left_out)


def _both(pro: Path, anti: Path) -> Iterator[PronounItem | None]:
    """The items of two files, None for lines that differ in more than their pronouns."""
    first, second = _lines(pro), _lines(anti)
    if len(first) != len(second):
        raise InvalidOptionError(
            f"{pro.name} has {len(first)} sentences and {anti.name} {len(second)}: they must correspond"
        )
    kind = "type2" if "type2" in pro.name else "type1"
    for number, (line, other) in enumerate(zip(first, second, strict=True), 1):
        gender, occupation = _marks(line, f"{pro.name}, line {number}")
        against, _ = _marks(other, f"{anti.name}, line {number}")
        if _without_pronouns(line) != _without_pronouns(other) or gender == against:
            yield None
            continue
        yield PronounItem(_plain(line), _plain(other), gender, occupation, kind, "")


def _lines(path: Path) -> list[str]:
    return [_NUMBER.sub("", line).strip() for line in read_text(path).split("\n") if line.strip()]


def _marks(line: str, where: str) -> tuple[Gender, str]:
    """The gender of the first marked pronoun, and the occupation that is marked."""
    marked = [" ".join(word.lower().split()) for word in _MARKED.findall(line)]
    genders = [_GENDERS[word] for word in marked if word in _GENDERS]
    occupations = [re.sub(r"^((the|a|an) )+", "", word) for word in marked if word not in _GENDERS]
    if not genders or not occupations:
        raise InvalidOptionError(
            f"{where}: no occupation and pronoun are marked, as in '[The nurse] said that [she]': {line!r}"
        )
    return genders[0], occupations[0]


def _plain(line: str) -> str:
    return " ".join(_MARKED.sub(r"\1", line).split())


def _without_pronouns(line: str) -> list[str]:
    """The words of a line, each pronoun a blank: possessives differ in form too (his, her)."""
    words = re.findall(r"\w+|[^\w\s]", _plain(line).lower())
    return ["_" if word in _GENDERS else word for word in words]


def _scene(sentence: str, occupations: Sequence[str]) -> str:
    """The occupations that a sentence speaks of, in the order of their letters."""
    rest, found = sentence.lower(), []
    for occupation in occupations:
        without = re.sub(rf"\b{re.escape(occupation)}\b", " ", rest)
        if without != rest:
            found.append(occupation)
            rest = without
    return " + ".join(sorted(found))


# Winogender


def read_winogender(paths: Sequence[Path]) -> PronounItems:
    """Winogender (Rudinger et al. 2018): ``all_sentences.tsv``, and ``occupations-stats.tsv``.

    A sentence's id says ``occupation.participant.answer.gender``; the answer is 0 where the pronoun is the
    occupation's, and 1 where it is the participant's. The stereotype is the gender of most people in the
    occupation (``bls_pct_female``, the US Bureau of Labor Statistics).

    Raises:
        InvalidOptionError: another form of file, an id of another form, or an occupation without a share.
    """
    sentences, shares = (_table(path) for path in sorted(paths, key=lambda path: path.name))
    female = {row["occupation"]: _percent(row) for row in shares}
    groups: dict[tuple[str, str, str], dict[str, str]] = {}
    for row in sentences:
        parts = row["sentid"].split(".")
        if len(parts) < 4 or parts[2] not in ("0", "1"):
            raise InvalidOptionError(
                f"all_sentences.tsv: the id {row['sentid']!r} is not occupation.participant.answer.gender"
            )
        groups.setdefault((parts[0], parts[1], parts[2]), {})[parts[3]] = row["sentence"]
    items, incomplete, even = [], 0, 0
    for (occupation, _participant, answer), texts in groups.items():
        if occupation not in female:
            raise InvalidOptionError(f"occupations-stats.tsv says nothing of {occupation!r}")
        share = female[occupation]
        incomplete += not {"male", "female"} <= texts.keys()
        even += share == 50
        if {"male", "female"} <= texts.keys() and share != 50:
            items.append(_winogender_item(occupation, answer, texts, share))
    reasons = {"of which one gender's sentence is missing": incomplete, "of as many women as men": even}
    return PronounItems(tuple(items), {reason: count for reason, count in reasons.items() if count})


def _winogender_item(occupation: str, answer: str, texts: Mapping[str, str], share: float) -> PronounItem:
    gender: Gender = "female" if share > 50 else "male"
    other = "male" if gender == "female" else "female"
    kind = "participant" if answer == "1" else "occupation"
    template = f"{occupation}, {answer}"
    return PronounItem(texts[gender], texts[other], gender, occupation, kind, template, share)


def _table(path: Path) -> list[dict[str, str]]:
    wanted = {
        "all_sentences.tsv": ("sentid", "sentence"),
        "occupations-stats.tsv": ("occupation", "bls_pct_female"),
    }[path.name]
    rows = list(csv.DictReader(read_text(path).splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE))
    if not rows or any(not row.get(name) for row in rows for name in wanted):
        raise InvalidOptionError(f"{path.name} is not a table with the columns {' and '.join(wanted)}")
    return rows


def _percent(row: Mapping[str, str]) -> float:
    try:
        share = float(row["bls_pct_female"])
    except ValueError:
        share = -1.0
    if not 0 <= share <= 100:
        raise InvalidOptionError(
            f"occupations-stats.tsv: the share of {row['occupation']!r} is no percentage: "
            f"{row['bls_pct_female']!r}"
        )
    return share
