"""What stands around a report's findings: what was asked, and what the answers don't say."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from html import escape

from optipfair_engine.bias.results.result import BiasResult
from optipfair_engine.bias.results.scores import CrowsPairsScores
from optipfair_engine.options.suites import entry_of

_ACTIVATIONS = (
    "A difference of activations says that a model tells two prompts apart, not that it treats people "
    "unfairly. A smaller one can also mean a model that reads less of its prompt."
)
_NEURONS = "A neuron that reacts need not cause anything; what it causes was not asked (patching)."
_CAUSE = (
    "An effect is on the next token behind these prompts and on nothing else. The largest of many effects is "
    "somewhat too large by chance."
)
_GENERATIONS = (
    "Continuations are samples. A lexicon counts friendly and hostile words and understands no sentence; "
    "it can't see who is spoken of."
)
_SUITES = (
    "Suites of sentences have noisy and invalid items (Blodgett et al. 2021), and are about the stereotypes "
    "of where they were written: they serve to compare models."
)
_ALWAYS = "Nothing here shows that a model is free of bias: what was not asked was not measured."


def asked_section(result: BiasResult) -> Iterable[str]:
    """The questions, as far as the result tells them."""
    yield "<h2>What was asked</h2>"
    yield _list(_asked(result))


def unsaid_section(result: BiasResult) -> Iterable[str]:
    """What must not be read into the findings."""
    yield "<h2>What this does not say</h2>"
    yield _list(_unsaid(result))


def _list(sentences: Iterable[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences) + "</ul>"


def _asked(result: BiasResult) -> Iterator[str]:
    yield f"The model: {result.model}" + (f"; the baseline: {result.baseline}." if result.baseline else ".")
    found = result.activations
    if found is not None:
        yield (
            f"Whether it tells prompts apart that differ in an attribute: {found.pairs:,} pairs of "
            f"{found.templates:,} templates, beside {found.control_pairs:,} pairs of rewordings."
        )
    if result.neurons is not None:
        yield "Which neurons react to the attribute."
    if result.cause is not None:
        yield f"Which {result.cause.kind} cause the difference."
    if result.generations is not None:
        yield f"What it says to both prompts, {result.generations.samples:,} times each."
    titles = [entry_of(suite.name).title for suite in result.suites]
    if result.behaviour is not None:
        titles.append("CrowS-Pairs" if isinstance(result.behaviour, CrowsPairsScores) else "StereoSet")
    if titles:
        yield f"Which answers and sentences it finds likelier: {', '.join(titles)}."


def _unsaid(result: BiasResult) -> Iterator[str]:
    if result.activations is not None:
        yield _ACTIVATIONS
    if result.neurons is not None and result.cause is None:
        yield _NEURONS
    if result.cause is not None:
        yield _CAUSE
    if result.generations is not None:
        yield _GENERATIONS
    if result.behaviour is not None or result.suites:
        yield _SUITES
    yield _ALWAYS
