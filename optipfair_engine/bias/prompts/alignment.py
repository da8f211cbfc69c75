"""Which positions of two prompts can be compared, when a changed word has changed the number of tokens.

Prompts of as many tokens are compared position by position. Of others, spans of equal letters are matched (a
letter may be several tokens, and most tokens are several letters); the differing spans between them are
compared position by position if they are equally long, else each is pooled (its mean). What stands on one
side only can't be compared: it is reported.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import accumulate, pairwise
from typing import Literal

Kind = Literal["equal", "replaced", "pooled", "first_only", "second_only"]


@dataclass(frozen=True)
class Unit:
    """Token positions ``[start1, stop1)`` of the first prompt against ``[start2, stop2)`` of the second."""

    kind: Kind
    start1: int
    stop1: int
    start2: int
    stop2: int

    @property
    def aligned(self) -> bool:
        """Whether both sides have tokens."""
        return self.kind not in ("first_only", "second_only")

    def swapped(self) -> Unit:
        """The same unit with the sides exchanged."""
        kinds: dict[Kind, Kind] = {"first_only": "second_only", "second_only": "first_only"}
        return Unit(kinds.get(self.kind, self.kind), self.start2, self.stop2, self.start1, self.stop1)


@dataclass(frozen=True)
class Alignment:
    """All units of a pair, in order, and the numbers of tokens."""

    units: tuple[Unit, ...]
    length1: int
    length2: int
    causal: bool = True

    @property
    def compared(self) -> tuple[Unit, ...]:
        """The units with tokens on both sides: the rows of every difference."""
        return tuple(unit for unit in self.units if unit.aligned)

    @property
    def first_difference(self) -> int | None:
        """Index in ``compared`` of the first one at or behind the first difference; None: there is none.

        Before it a causal model has seen the same tokens on both sides, so there is no signal. In any other
        model every position has seen the difference: then it is the first one.
        """
        if not self.causal:
            differs = any(unit.kind != "equal" for unit in self.units)
            return 0 if differs and self.compared else None
        before = next((number for number, unit in enumerate(self.units) if unit.kind != "equal"), None)
        return before if before is not None and before < len(self.compared) else None

    @property
    def share_aligned(self) -> float:
        """Tokens (of both prompts) that are compared, as a share of all of them."""
        used = sum(unit.stop1 - unit.start1 + unit.stop2 - unit.start2 for unit in self.compared)
        total = self.length1 + self.length2
        return used / total if total else 1.0

    def swapped(self) -> Alignment:
        """The alignment of the pair the other way round."""
        return Alignment(
            tuple(unit.swapped() for unit in self.units), self.length2, self.length1, self.causal
        )

    def as_dict(self, tokens1: Sequence[str], tokens2: Sequence[str]) -> dict[str, object]:
        """A JSON-ready report; ``unaligned`` and ``pooled`` spell the tokens out."""
        return {
            "method": "position by position" if self.length1 == self.length2 else "equal token spans",
            "tokens": [self.length1, self.length2],
            "compared_positions": len(self.compared),
            "first_difference": self.first_difference,
            "share_aligned": self.share_aligned,
            "changed": [_words(u, tokens1, tokens2) for u in self.units if u.kind == "replaced"],
            "pooled": [_words(u, tokens1, tokens2) for u in self.units if u.kind == "pooled"],
            "unaligned": [_words(u, tokens1, tokens2) for u in self.units if not u.aligned],
        }


def _words(unit: Unit, tokens1: Sequence[str], tokens2: Sequence[str]) -> dict[str, object]:
    return {
        "first": list(tokens1[unit.start1 : unit.stop1]),
        "second": list(tokens2[unit.start2 : unit.stop2]),
        "at": [unit.start1, unit.start2],
    }


def align(
    ids1: Sequence[int],
    ids2: Sequence[int],
    *,
    letters: tuple[Sequence[int], Sequence[int]] | None = None,
    causal: bool = True,
) -> Alignment:
    """Align two prompts of a causal (or other) model by their token ids; by position, if they have as many.

    ``letters`` are how many tokens each letter of either prompt is of: two letters that share some of their
    bytes, and no more, are then not taken for equal in part. By default each token stands for itself.
    ``align(b, a) == align(a, b).swapped()``: the matcher breaks ties by the order of its arguments, so they
    are always given in the same order.
    """
    if tuple(ids2) < tuple(ids1):
        turned = (letters[1], letters[0]) if letters is not None else None
        return align(ids2, ids1, letters=turned, causal=causal).swapped()
    if len(ids1) == len(ids2):
        return Alignment(
            tuple(_unit(i, a == b) for i, (a, b) in enumerate(zip(ids1, ids2, strict=True))),
            len(ids1),
            len(ids2),
            causal,
        )
    sizes = letters if letters is not None else ([1] * len(ids1), [1] * len(ids2))
    places1, places2 = ([0, *accumulate(of)] for of in sizes)
    matcher = SequenceMatcher(None, _spelled(ids1, places1), _spelled(ids2, places2), autojunk=False)
    units: list[Unit] = []
    for tag, start1, stop1, start2, stop2 in matcher.get_opcodes():
        units.extend(_units(tag, places1[start1], places1[stop1], places2[start2], places2[stop2]))
    return Alignment(tuple(units), len(ids1), len(ids2), causal)


def _spelled(ids: Sequence[int], places: Sequence[int]) -> list[tuple[int, ...]]:
    return [tuple(ids[start:stop]) for start, stop in pairwise(places)]


def _unit(position: int, equal: bool) -> Unit:
    return Unit("equal" if equal else "replaced", position, position + 1, position, position + 1)


def _units(tag: str, start1: int, stop1: int, start2: int, stop2: int) -> list[Unit]:
    if tag == "delete":
        return [Unit("first_only", start1, stop1, start2, start2)]
    if tag == "insert":
        return [Unit("second_only", start1, start1, start2, stop2)]
    if stop1 - start1 != stop2 - start2:
        return [Unit("pooled", start1, stop1, start2, stop2)]
    kind: Kind = "equal" if tag == "equal" else "replaced"
    return [Unit(kind, start1 + i, start1 + i + 1, start2 + i, start2 + i + 1) for i in range(stop1 - start1)]


def infer_template(prompt1: str, prompt2: str) -> str:
    """The words that both prompts share, the differing ones replaced by ``{}``: names the pair's template.

    Where they share no word (Chinese and Japanese have no spaces), the letters that they share; where not
    even those, the template is the pair itself.
    """
    for pieces, space in (([prompt1.split(), prompt2.split()], " "), ([list(prompt1), list(prompt2)], "")):
        first, second = sorted(pieces)
        shared = _common(first, second, space)
        if shared != "{}":
            return shared
    return " / ".join(sorted((prompt1, prompt2)))


def _common(words1: Sequence[str], words2: Sequence[str], space: str) -> str:
    matcher = SequenceMatcher(None, words1, words2, autojunk=False)
    return space.join(
        space.join(words1[start:stop]) if tag == "equal" else "{}"
        for tag, start, stop, _, _ in matcher.get_opcodes()
    )
