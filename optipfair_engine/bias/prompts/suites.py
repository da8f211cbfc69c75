"""Benchmark files as published: CrowS-Pairs (CSV), StereoSet (JSON, or one item a line), or plain pairs."""

from __future__ import annotations

import csv
import io
import json
import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from optipfair_engine.bias.defaults import PromptPair
from optipfair_engine.bias.prompts.alignment import infer_template
from optipfair_engine.errors import InvalidOptionError

LARGEST_FILE = 64 * 2**20


@dataclass(frozen=True)
class CrowsItem:
    """One CrowS-Pairs item (Nangia et al. 2020): ``more`` is the sentence that stereotypes more."""

    more: str
    less: str
    direction: str
    category: str


@dataclass(frozen=True)
class StereoItem:
    """One StereoSet item (Nadeem et al. 2021); an intersentence item's ``context`` precedes its sentences."""

    kind: Literal["intrasentence", "intersentence"]
    target: str
    category: str
    context: str
    stereotype: str
    anti_stereotype: str
    unrelated: str


@dataclass(frozen=True)
class PairItem:
    """A prompt pair; ``template`` names its cluster where the file does.

    ``suite`` and ``category`` are those of the catalogue, where it is of one.
    """

    first: str
    second: str
    template: str | None = None
    suite: str | None = None
    category: str | None = None


Suite: TypeAlias = list[CrowsItem] | list[StereoItem] | list[PairItem]


def pair_items(values: Sequence[Sequence[str] | Mapping[str, str] | PairItem], kind: str) -> list[PairItem]:
    """Pairs of texts, or objects with prompt1, prompt2 and template, as items; ``kind`` is for errors.

    Raises:
        InvalidOptionError: something else than two texts, or two that are equal or blank; the text names the
            pair's number, counted from 1 as in the metrics.
    """
    found = []
    for number, value in enumerate(values, 1):
        try:
            item = value if isinstance(value, PairItem) else _pair(value, number)
        except ValueError:
            raise InvalidOptionError(f"{kind} pair {number} is not two texts: {value!r}") from None
        found.append(_telling(item, f"{kind} pair {number}"))
    return found


def _telling(pair: PairItem, where: str) -> PairItem:
    """The pair, if there is anything to compare in it.

    Raises:
        InvalidOptionError: a prompt is blank, or both are the same but for spaces around them.
    """
    for name, prompt in (("first", pair.first), ("second", pair.second)):
        if not prompt.strip():
            raise InvalidOptionError(f"{where}: the {name} prompt is blank")
    if pair.first.strip() == pair.second.strip():
        raise InvalidOptionError(
            f"{where}: the two prompts are equal, so there is no difference to measure: {pair.first[:60]!r}"
        )
    return pair


def texts_of(pairs: Sequence[PairItem]) -> list[PromptPair]:
    """The two texts of each pair."""
    return [(pair.first, pair.second) for pair in pairs]


def templates_of(pairs: Sequence[PairItem]) -> list[str]:
    """Each pair's cluster: its template if it names one, else the words that both prompts share."""
    return [infer_template(p.first, p.second) if p.template is None else p.template for p in pairs]


def read_pairs(path: Path) -> list[PairItem]:
    """The prompt pairs of a file.

    Raises:
        InvalidOptionError: no readable file, or a benchmark's.
    """
    items = read_suite(path)
    pairs = [item for item in items if isinstance(item, PairItem)]
    if len(pairs) != len(items):
        raise InvalidOptionError(f"{path.name} is a benchmark, not prompt pairs; give it as --suite")
    return pairs


def read_suite(path: Path) -> Suite:
    """The items of a suite file, its format known by its content.

    - CrowS-Pairs: CSV with the columns ``sent_more, sent_less, stereo_antistereo, bias_type``.
    - StereoSet: the published JSON (``data.intrasentence``, ``data.intersentence``), or one item a line with
      ``type, target, bias_type, context, stereotype, anti-stereotype, unrelated``.
    - Prompt pairs: a JSON list, or one a line, of ``[prompt 1, prompt 2]`` or ``{"prompt1", "prompt2",
      "template"?}``.

    Raises:
        InvalidOptionError: another format, a broken item (its number is named), no item, or a file above 64
            MB.
    """
    text = read_text(path)
    try:
        items = _read(text)
    except (ValueError, csv.Error) as error:
        raise InvalidOptionError(f"The suite file {path.name} can't be read: {error}") from error
    if not items:
        raise InvalidOptionError(f"The suite file {path.name} has no items")
    return items


def read_text(path: Path) -> str:
    """The text of a suite file.

    Raises:
        InvalidOptionError: there is no such file, it is larger than 64 MB, or no UTF-8 text.
    """
    if not path.is_file():
        raise InvalidOptionError(f"There is no suite file {path.name}")
    if path.stat().st_size > LARGEST_FILE:
        raise InvalidOptionError(f"The suite file {path.name} is larger than 64 MB")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise InvalidOptionError(f"The suite file {path.name} is not UTF-8 text") from None


def blank_span(context: str, sentence: str, where: str) -> tuple[int, int]:
    """Where the word that replaced BLANK stands in an intrasentence sentence: (first, behind) character.

    The word of the same number, without the punctuation around BLANK: the sentences' case and their last full
    stop are not always the context's.

    Raises:
        InvalidOptionError: the context has no BLANK, or the sentence no such word.
    """
    words = context.split()
    number = next((n for n, word in enumerate(words) if "BLANK" in word), None)
    if number is None:
        raise InvalidOptionError(f"{where}: the context {context!r} has no BLANK")
    found = list(re.finditer(r"\S+", sentence))
    if number >= len(found):
        raise InvalidOptionError(f"{where}: {sentence!r} has no word in the place of BLANK in {context!r}")
    start, stop = found[number].span()
    before, _, behind = words[number].partition("BLANK")
    word = found[number].group()
    if before and word.startswith(before):
        start += len(before)
    if behind and word.endswith(behind):
        stop -= len(behind)
    core = sentence[start:stop].strip(string.punctuation)
    start += sentence[start:stop].find(core)
    return (start, start + len(core)) if core else found[number].span()


def _read(text: str) -> Suite:
    start = text.lstrip()[:1]
    if start not in ("{", "["):
        return _read_crows(text)
    try:
        whole = json.loads(text)
    except json.JSONDecodeError as error:
        whole = _read_lines(text, error)
    if isinstance(whole, Mapping) and "data" in whole:
        return _read_published(whole["data"])
    if isinstance(whole, Mapping) or _is_one_pair(whole):
        whole = [whole]
    if whole and isinstance(whole[0], Mapping) and "anti-stereotype" in whole[0]:
        return [_flat(item, f"item {number}") for number, item in enumerate(whole)]
    return [_telling(_pair(item, number), f"pair {number}") for number, item in enumerate(whole, 1)]


def _read_lines(text: str, whole_error: json.JSONDecodeError) -> list[Any]:
    """One JSON value a line; a text whose first line is none is judged as one JSON document."""
    values: list[Any] = []
    # not splitlines: a JSON string may hold U+2028 as it is
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            values.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise (
                ValueError(f"line {number} is not JSON: {error.msg}, column {error.colno}")
                if values
                else ValueError(f"not JSON, whole or by line: {whole_error}")
            ) from None
    return values


_KINDS: tuple[Literal["intrasentence", "intersentence"], ...] = ("intrasentence", "intersentence")


def _is_one_pair(value: Any) -> bool:
    return (
        isinstance(value, list | tuple) and len(value) == 2 and all(isinstance(item, str) for item in value)
    )


_CROWS_COLUMNS = ("sent_more", "sent_less", "stereo_antistereo", "bias_type")


def _read_crows(text: str) -> list[CrowsItem]:
    # strict: a quote that is never closed is an error, and swallows no items
    rows: csv.DictReader[str] = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    header = [name.strip() for name in rows.fieldnames or ()]
    if header and not set(header) & set(_CROWS_COLUMNS):
        raise ValueError(
            f"it is neither CrowS-Pairs (CSV with the columns {', '.join(_CROWS_COLUMNS)}), nor StereoSet "
            "(JSON with 'data', or one object a line with 'anti-stereotype'), nor prompt pairs (JSON, or one "
            f'["prompt 1", "prompt 2"] a line); its first line is {text.splitlines()[0][:60]!r}'
        )
    items = []
    for number, row in enumerate(rows):
        more, less, direction, category = (
            _text(row, name, f"item {number} (line {rows.line_num})") for name in _CROWS_COLUMNS
        )
        items.append(CrowsItem(more, less, direction, category))
    return items


def _text(item: Any, name: str, where: str) -> str:
    """A field that must be a text with something in it."""
    if not isinstance(item, Mapping):
        raise ValueError(f"{where} is not an object")
    value = item.get(name)
    if value is None:
        raise ValueError(f"{where}: {name!r} is missing")
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{where}: {name!r} must be a text, got {value!r}")
    return value


def _read_published(data: Any) -> list[StereoItem]:
    if not isinstance(data, Mapping) or not all(isinstance(data.get(kind, []), list) for kind in _KINDS):
        raise ValueError(f"'data' must be an object with the lists {' and '.join(_KINDS)}")
    return [
        _published(item, kind, f"{kind} item {number}")
        for kind in _KINDS
        for number, item in enumerate(data.get(kind, []))
    ]


def _published(item: Any, kind: Literal["intrasentence", "intersentence"], where: str) -> StereoItem:
    target = _text(item, "target", where)
    sentences = item.get("sentences")
    if not isinstance(sentences, list):
        raise ValueError(f"{where}: 'sentences' must be a list")
    by_label = {_text(entry, "gold_label", where): _text(entry, "sentence", where) for entry in sentences}
    return StereoItem(
        kind,
        target,
        _text(item, "bias_type", where),
        _text(item, "context", where),
        *(_text(by_label, label, where) for label in _LABELS),
    )


_LABELS = ("stereotype", "anti-stereotype", "unrelated")


def _flat(item: Any, where: str) -> StereoItem:
    named = _text(item, "type", where)
    kind = next((kind for kind in _KINDS if kind == named), None)
    if kind is None:
        raise ValueError(f"{where}: type {named!r} is neither intrasentence nor intersentence")
    target, category, context = (_text(item, name, where) for name in ("target", "bias_type", "context"))
    return StereoItem(kind, target, category, context, *(_text(item, label, where) for label in _LABELS))


def _pair(item: Any, number: int) -> PairItem:
    if _is_one_pair(item):
        return PairItem(item[0], item[1])
    if (
        isinstance(item, Mapping)
        and isinstance(item.get("prompt1"), str)
        and isinstance(item.get("prompt2"), str)
    ):
        template = item.get("template")
        return PairItem(item["prompt1"], item["prompt2"], None if template is None else str(template))
    raise ValueError(f"pair {number} is neither [prompt 1, prompt 2] nor an object with prompt1 and prompt2")
