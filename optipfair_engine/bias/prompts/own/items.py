"""Pairs and control pairs of the suite, made of scenes and attributes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from optipfair_engine.bias.defaults import fill_template
from optipfair_engine.bias.prompts.own import english, spanish
from optipfair_engine.bias.prompts.suites import PairItem


@dataclass(frozen=True)
class OwnItems:
    """Pairs of every scene and category, and a control pair of every scene; the scene is the template."""

    pairs: tuple[PairItem, ...]
    controls: tuple[PairItem, ...]


def own_items(name: str) -> OwnItems:
    """The items of ``optipfair`` (English) or ``optipfair_es`` (Spanish).

    Every scene is filled once for each category, with the next of its pairs of words, and once for the
    controls: as many pairs a category as there are scenes, all with the same scenes.
    """
    language = _LANGUAGES[name]
    templates: Sequence[str] = language.TEMPLATES
    attributes: Mapping[str, Sequence[tuple[str, str]]] = language.ATTRIBUTES
    pairs = [
        _pair(template, words[number % len(words)], name, category)
        for number, template in enumerate(templates)
        for category, words in attributes.items()
    ]
    controls = [
        _pair(template, language.CONTROLS[number % len(language.CONTROLS)], name, None)
        for number, template in enumerate(templates)
    ]
    return OwnItems(tuple(pairs), tuple(controls))


_LANGUAGES: Final = {"optipfair": english, "optipfair_es": spanish}


def _pair(template: str, words: tuple[str, str], suite: str, category: str | None) -> PairItem:
    first, second = (fill_template(template, word) for word in words)
    return PairItem(first, second, template, suite, category)
