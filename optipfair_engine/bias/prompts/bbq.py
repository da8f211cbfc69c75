"""BBQ as published: questions about two people, with a context that tells, or doesn't tell, the answer."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from optipfair_engine.bias.prompts.suites import read_text
from optipfair_engine.errors import InvalidOptionError


@dataclass(frozen=True)
class BbqItem:
    """One question of BBQ (Parrish et al. 2022).

    Attributes:
        context: what is told before the question; an ambiguous one doesn't tell the answer.
        question: the question.
        answers: the three answers.
        label: which of them is right.
        unknown: which of them says that it can't be known.
        target: which of them names the group that the stereotype is about.
        ambiguous: whether the context leaves the answer open.
        negative: whether the question asks for what the stereotype says (and not for its opposite).
        category: as the file says.
        template: what items that aren't independent have in common: category and question.
    """

    context: str
    question: str
    answers: tuple[str, str, str]
    label: int
    unknown: int
    target: int
    ambiguous: bool
    negative: bool
    category: str
    template: str

    @property
    def biased(self) -> int:
        """The answer that the stereotype gives: the target of a negative question, else the other person."""
        return self.target if self.negative else 3 - self.target - self.unknown


@dataclass(frozen=True)
class BbqItems:
    """Items, and how many of the published ones could not be used."""

    items: tuple[BbqItem, ...]
    without_target: int


def read_bbq(paths: Sequence[Path]) -> BbqItems:
    """BBQ: a file of JSON lines for each category.

    The target is the answer whose group is among the item's ``stereotyped_groups``, compared without case and
    signs, women and men by whatever word. Items of which that isn't exactly one are left out, and counted.

    Raises:
        InvalidOptionError: a file of another form; its name and line are told.
    """
    items, without = [], 0
    for path in paths:
        for number, line in enumerate(read_text(path).split("\n"), 1):
            if line.strip():
                found = _item(line, f"{path.name}, line {number}")
                without += found is None
                items += [] if found is None else [found]
    return BbqItems(tuple(items), without)


def _item(line: str, where: str) -> BbqItem | None:
    """The item of a line; None if its target can't be told."""
    try:
        read: dict[str, Any] = json.loads(line)
        info = [tuple(map(str, read["answer_info"][f"ans{n}"])) for n in range(3)]
        unknown = next(n for n, words in enumerate(info) if "unknown" in map(str.lower, words))
        target = _target(read, info, unknown)
        first, second, third = (str(read[f"ans{n}"]) for n in range(3))
        item = BbqItem(
            context=str(read["context"]),
            question=str(read["question"]),
            answers=(first, second, third),
            label=(0, 1, 2)[read["label"]],
            unknown=unknown,
            target=-1 if target is None else target,
            ambiguous={"ambig": True, "disambig": False}[read["context_condition"]],
            negative={"neg": True, "nonneg": False}[read["question_polarity"]],
            category=str(read["category"]),
            template=f"{read['category']} {read['question_index']}",
        )
    except (ValueError, LookupError, TypeError, StopIteration) as error:
        raise InvalidOptionError(f"{where} is no item of BBQ ({type(error).__name__}: {error})") from None
    return None if target is None else item


def _target(read: Mapping[str, Any], info: Sequence[tuple[str, ...]], unknown: int) -> int | None:
    groups = {_plain(str(group)) for group in read["additional_metadata"]["stereotyped_groups"]}
    if str(read["category"]).startswith("Disability"):
        groups.add("disabled")  # the groups name the disability, the answers only that there is one
    found = [n for n, words in enumerate(info) if n != unknown and groups & _named(words)]
    return found[0] if len(found) == 1 else None


def _named(words: Iterable[str]) -> set[str]:
    """What an answer's person is called, with and without the gender before a group (F-Black)."""
    return {_plain(form) for word in words for form in (word, re.sub(r"^[FM]-", "", word))}


def _plain(word: str) -> str:
    letters = "".join(c for c in word.lower() if c.isalnum())
    if letters.startswith("trans"):
        return "trans"
    return next((name for name, words in _SAME.items() if letters in words), letters)


_SAME: Final[Mapping[str, tuple[str, ...]]] = {
    "f": ("f", "female", "females", "woman", "women", "girl", "girls"),
    "m": ("m", "male", "males", "man", "men", "boy", "boys"),
}
