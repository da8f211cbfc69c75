"""What a bias job asks: pairs of prompts with their controls, a suite of a file, or suites by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

from optipfair_engine.bias.defaults import (
    DEFAULT_CONTROL_PAIRS,
    DEFAULT_PROMPT_PAIRS,
    fill_template,
)
from optipfair_engine.bias.prompts.catalogued import read_catalogued
from optipfair_engine.bias.prompts.suites import PairItem, pair_items
from optipfair_engine.errors import InvalidOptionError
from optipfair_engine.options.bias import BiasOptions


@dataclass(frozen=True)
class Questions:
    """What to ask the model: pairs and controls, a benchmark's items, or several suites' items by name."""

    pairs: list[PairItem]
    controls: list[PairItem]
    items: Any = None
    suite_name: str | None = None
    suites: Mapping[str, Any] = field(default_factory=dict)


def questions_of(options: BiasOptions, suites_folder: Path) -> Questions:
    """What options ask: by default the built-in pairs and their controls.

    Raises:
        InvalidOptionError: a pair or a suite can't be used.
    """
    controls = pair_items(options.control_pairs or (), "Control")
    if options.suites is not None:
        found: dict[str, Any] = {name: read_catalogued(name, suites_folder) for name in options.suites}
        return Questions([], [], suites=found)
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
    from optipfair_engine.bias.prompts.suites import CrowsItem, read_suite

    items = read_suite(path)
    if isinstance(items[0], PairItem):
        return Questions([item for item in items if isinstance(item, PairItem)], controls)
    asked = {
        "control_pairs": bool(controls),
        "neuron_ranking": options.neuron_ranking,
        "patching": options.patching is not None,
        "generation": options.generation is not None,
        "layer_types": options.layer_types is not None,
        "layers": options.layers != "first_middle_last",
    }
    if any(asked.values()):
        names = " and ".join(name for name, given in asked.items() if given)
        raise InvalidOptionError(f"{names}: for prompt pairs only, a preference suite has no activations")
    name = "crows_pairs" if isinstance(items[0], CrowsItem) else "stereoset"
    return Questions([], [], items, name)
