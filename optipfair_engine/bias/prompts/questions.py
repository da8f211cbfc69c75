"""What a bias measurement asks a model: pairs and control pairs, a benchmark's items, or suites by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from optipfair_engine.bias.defaults import DEFAULT_CONTROL_PAIRS, DEFAULT_PROMPT_PAIRS, fill_template
from optipfair_engine.bias.prompts.catalogued import read_catalogued
from optipfair_engine.bias.prompts.suites import CrowsItem, PairItem, pair_items, read_suite
from optipfair_engine.errors import InvalidOptionError
from optipfair_engine.options.bias import BiasOptions
from optipfair_engine.options.suites import pair_suites


@dataclass(frozen=True)
class Questions:
    """What to ask the model: pairs and controls, a benchmark's items, or several suites' items by name.

    ``compared``: whether another model is asked the same.
    """

    pairs: list[PairItem]
    controls: list[PairItem]
    items: Any = None
    suite_name: str | None = None
    suites: Mapping[str, Any] = field(default_factory=dict)
    compared: bool = False


def questions_of(options: BiasOptions, suites_folder: Path, *, baseline: bool = False) -> Questions:
    """What is asked: what the options name, else the default pairs (or suite, see ``suites_asked``).

    Raises:
        InvalidOptionError: prompts or a file that can't be used.
        SuiteDataError: the files of a named suite are not in the suites folder.
    """
    return replace(_asked(options, suites_folder, baseline), compared=baseline)


def _asked(options: BiasOptions, suites_folder: Path, baseline: bool) -> Questions:
    controls = pair_items(options.control_pairs or (), "Control")
    suites = options.suites_asked(baseline=baseline)
    if suites:
        return _named(suites, suites_folder)
    if options.suite is not None:
        return _suite_questions(options, options.suite, controls)
    if options.template is not None and options.attributes is not None:
        return Questions(_filled(options.template, options.attributes), controls)
    if options.prompt_pairs is not None:
        return Questions(pair_items(options.prompt_pairs, "Prompt"), controls)
    return Questions(
        pair_items(DEFAULT_PROMPT_PAIRS, "Prompt"),
        controls or pair_items(DEFAULT_CONTROL_PAIRS, "Control"),
    )


def _named(suites: Sequence[str], folder: Path) -> Questions:
    found: dict[str, Any] = {name: read_catalogued(name, folder) for name in suites}
    own = [found.pop(name) for name in pair_suites(suites)]
    pairs = [pair for items in own for pair in items.pairs]
    return Questions(pairs, [pair for items in own for pair in items.controls], suites=found)


def _filled(template: str, attributes: Sequence[str]) -> list[PairItem]:
    """The template filled with every two of the words."""
    words = [word.strip() for word in attributes]
    twice = [word for word, count in Counter(words).items() if count > 1]
    if twice:
        raise InvalidOptionError(
            f"attributes has {twice[0]!r} more than once: two equal words would make a pair of equal prompts"
        )
    if len(words) < 2 or not all(words):
        raise InvalidOptionError("attributes need at least two words, none of them blank")
    return [
        PairItem(fill_template(template, a), fill_template(template, b), template)
        for a, b in combinations(words, 2)
    ]


def _suite_questions(options: BiasOptions, path: Path, controls: list[PairItem]) -> Questions:
    items = read_suite(path)
    if isinstance(items[0], PairItem):
        return Questions([item for item in items if isinstance(item, PairItem)], controls)
    asked = (*(["control_pairs"] if controls else []), *options.asked_of_pairs)
    if asked:
        names = " and ".join(asked)
        raise InvalidOptionError(f"{names}: for prompt pairs only, a preference suite has no activations")
    name = "crows_pairs" if isinstance(items[0], CrowsItem) else "stereoset"
    return Questions([], [], items, name)
