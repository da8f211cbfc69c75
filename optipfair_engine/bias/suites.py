"""Benchmark files as published: CrowS-Pairs (CSV), StereoSet (JSON, or one item a line), or plain pairs."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

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
    """A prompt pair; ``template`` names its cluster where the file does."""

    first: str
    second: str
    template: str | None = None


Suite: TypeAlias = list[CrowsItem] | list[StereoItem] | list[PairItem]


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
    if not path.is_file():
        raise InvalidOptionError(f"There is no suite file {path.name}")
    if path.stat().st_size > LARGEST_FILE:
        raise InvalidOptionError(f"The suite file {path.name} is larger than 64 MB")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise InvalidOptionError(f"The suite file {path.name} is not UTF-8 text") from None
    try:
        items = _read(text)
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise InvalidOptionError(f"The suite file {path.name} can't be read: {_reason(error)}") from error
    if not items:
        raise InvalidOptionError(f"The suite file {path.name} has no items")
    return items


def _reason(error: Exception) -> str:
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)


def _read(text: str) -> Suite:
    start = text.lstrip()[:1]
    if start not in ("{", "["):
        return _read_crows(text)
    try:
        whole = json.loads(text)
    except json.JSONDecodeError:
        whole = [json.loads(line) for line in text.splitlines() if line.strip()]
    if isinstance(whole, Mapping) and "data" in whole:
        return [_published(item, kind) for kind in _KINDS for item in whole["data"].get(kind, [])]
    if isinstance(whole, Mapping) or _is_one_pair(whole):
        whole = [whole]
    if whole and isinstance(whole[0], Mapping) and "anti-stereotype" in whole[0]:
        return [_flat(item) for item in whole]
    return [_pair(item, number) for number, item in enumerate(whole)]


_KINDS: tuple[Literal["intrasentence", "intersentence"], ...] = ("intrasentence", "intersentence")


def _is_one_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(item, str) for item in value)


def _read_crows(text: str) -> list[CrowsItem]:
    rows: Iterator[dict[str, str]] = csv.DictReader(text.splitlines(keepends=True))
    return [
        CrowsItem(row["sent_more"], row["sent_less"], row["stereo_antistereo"], row["bias_type"])
        for row in rows
    ]


def _published(item: Mapping[str, Any], kind: Literal["intrasentence", "intersentence"]) -> StereoItem:
    by_label = {sentence["gold_label"]: sentence["sentence"] for sentence in item["sentences"]}
    return StereoItem(
        kind,
        item["target"],
        item["bias_type"],
        item["context"],
        by_label["stereotype"],
        by_label["anti-stereotype"],
        by_label["unrelated"],
    )


def _flat(item: Mapping[str, Any]) -> StereoItem:
    if item["type"] not in _KINDS:
        raise ValueError(f"type {item['type']!r} is neither intrasentence nor intersentence")
    return StereoItem(
        item["type"],
        item["target"],
        item["bias_type"],
        item["context"],
        item["stereotype"],
        item["anti-stereotype"],
        item["unrelated"],
    )


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
    raise ValueError(f"item {number} is neither [prompt 1, prompt 2] nor an object with prompt1 and prompt2")
