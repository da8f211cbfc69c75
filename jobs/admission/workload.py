"""How much a job asks of a model beside loading it: prompts, items of a suite, figures, generated tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import comb
from typing import Any

from jobs.rows import JsonObject
from jobs.specs import BiasSpec, EvaluateSpec
from optipfair_engine.options.suites import CATALOGUE, entry_of

#: Multiplications and additions in a second on two ordinary cores, in passes over short texts.
_FLOPS = 2e10
#: A forward pass of a few tokens takes at least so long, whatever the model.
_PASS_SECONDS = 0.03
#: What pairs cost beside their passes: their tokens are aligned, their states compared.
_PAIR_SECONDS = 0.2
#: One figure, drawn and written.
_FIGURE_SECONDS = 0.8
FIGURE_BYTES = 300_000
_PROMPT_TOKENS = 24
#: Of an item of a published suite, with what its sentences share read once.
_ITEM_TOKENS: dict[str, int] = {entry.name: entry.tokens for entry in CATALOGUE}
#: The pairs, and the rewordings, that are asked where none are given.
_DEFAULT_PAIRS = 7
#: What is exchanged between prompts at most, of neurons or heads; of layers it is each one's two halves.
_PATCHED = 96
#: Of such patching, the gradient: its way back costs about two passes.
_GRADIENT_PASSES = 3
#: Generation: a token reads all weights; runs a prompt when it is timed.
_TIMED_RUNS = 7
_TIMED_PROMPTS = 3
#: What dynamic pruning adds to the timed runs of a model: those with its chosen neurons, and with all.
_DYNAMIC_WAYS = 2


@dataclass(frozen=True)
class BiasWork:
    """What one model is asked: `pairs` of prompts or `items` of a suite, and how many figures are drawn.

    `runs` are passes beside: batches with something exchanged between the prompts, and steps of continuing.
    """

    pairs: int
    items: int
    tokens: int
    figures: int
    runs: int = 0

    @property
    def drawing(self) -> float:
        """Seconds for the figures, which are drawn of one model only."""
        return self.figures * _FIGURE_SECONDS

    def seconds(self, parameters: int) -> float:
        """Seconds on two ordinary cores for a model of that many parameters."""
        passes = 2 * self.pairs + self.items + self.runs
        computing = 2.0 * self.tokens * parameters / _FLOPS + passes * _PASS_SECONDS
        return computing + self.pairs * _PAIR_SECONDS + self.drawing


def bias_work(spec: BiasSpec, suites: Mapping[str, JsonObject], layers: int) -> BiasWork:
    """The work of a bias job; a suite of which nothing is known counts as a small one."""
    named = spec.suites_asked(baseline=spec.baseline is not None)
    if named:
        return _work_of(named, spec, layers)
    suite = suites.get(spec.suite, {}) if isinstance(spec.suite, str) else {}
    each = _ITEM_TOKENS.get(str(suite.get("kind")))
    if each is not None:
        items = int(suite["items"])
        return BiasWork(0, items, items * each, 0)
    asked = int(suite.get("items", 0)) or _pairs(spec)
    controls = len(spec.control_pairs or ()) or (0 if _has_prompts(spec) else _DEFAULT_PAIRS)
    pairs = asked + controls
    runs = _patching_runs(spec, layers)
    tokens = 2 * (pairs + runs * asked) * _PROMPT_TOKENS
    more_runs, more_tokens = _continuing(spec, asked)
    return BiasWork(pairs, 0, tokens + more_tokens, _figures(spec, asked, layers), runs + more_runs)


def _work_of(names: Sequence[str], spec: BiasSpec, layers: int) -> BiasWork:
    """The work of suites by name, whose sizes the catalogue knows."""
    entries = [entry_of(name) for name in names]
    pairs = sum(entry.items for entry in entries if entry.of_pairs)
    items = sum(entry.items for entry in entries) - pairs
    runs = _patching_runs(spec, layers) if pairs else 0
    tokens = sum(entry.items * entry.tokens for entry in entries) + 2 * runs * pairs * _PROMPT_TOKENS
    more_runs, more_tokens = _continuing(spec, pairs)
    figures = _figures(spec, pairs, layers) if pairs else 0
    return BiasWork(pairs, items, tokens + more_tokens, figures, runs + more_runs)


def _continuing(spec: BiasSpec, pairs: int) -> tuple[int, int]:
    """Passes and tokens of what the model says to both prompts of each pair."""
    if spec.generation is None:
        return 0, 0
    said = spec.generation.max_new_tokens
    # drawn once, and scored behind both prompts
    return 2 * pairs * said, 3 * 2 * pairs * spec.generation.samples * said


def _patching_runs(spec: BiasSpec, layers: int) -> int:
    if spec.patching is None:
        return 0
    return _GRADIENT_PASSES + (2 * layers if spec.patching == "layers" else _PATCHED)


def _has_prompts(spec: BiasSpec) -> bool:
    return any(value is not None for value in (spec.prompt_pairs, spec.template, spec.suite))


def _pairs(spec: BiasSpec) -> int:
    if spec.prompt_pairs is not None:
        return len(spec.prompt_pairs)
    return comb(len(spec.attributes), 2) if spec.attributes is not None else _DEFAULT_PAIRS


def _figures(spec: BiasSpec, pairs: int, layers: int) -> int:
    """The one chart, and what is asked for of each pair; of an empty list nothing is drawn."""
    kinds: Any = spec.visualization_types
    if kinds is not None and not kinds:
        return 0
    parts = len(spec.layer_types) if spec.layer_types is not None else 4
    outputs = len(spec.layer_types) if spec.layer_types is not None else 2
    shown = (
        (layers if spec.layers == "all" else min(3, layers))
        if isinstance(spec.layers, str)
        else len(spec.layers)
    )
    each = {"mean_diff": parts, "heatmap": parts * shown, "pca": outputs * shown}
    return 1 + pairs * sum(each[kind] for kind in kinds or ())


def generation_seconds(spec: EvaluateSpec, parameters: int) -> float:
    """Seconds for what a model shall continue, and for timing it, on two ordinary cores."""
    prompts, dynamic = len(spec.prompts or ()), spec.dynamic is not None
    generations = prompts * (2 if dynamic else 1)
    if spec.timing:
        runs = _TIMED_RUNS * (prompts or _TIMED_PROMPTS)
        generations += runs * (1 + _DYNAMIC_WAYS if dynamic else 1)
    return generations * spec.max_new_tokens * (2.0 * parameters / _FLOPS + _PASS_SECONDS)
