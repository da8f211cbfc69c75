"""Sections of the report about what patching found, and what the model says."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Final

from optipfair_engine.bias.html import figure, outcome, table
from optipfair_engine.bias.results.cause import Cause
from optipfair_engine.bias.results.continuations import NEXT_TOKEN, ContinuationChanges
from optipfair_engine.bias.results.generations import DIVERGENCE, LENGTH, SENTIMENT, Generations
from optipfair_engine.bias.wording import between, three_digits, what_causes, what_is_said

#: Name of the figure's file, without its ending.
EFFECTS: Final = "effects"
_MOST_UNITS: Final = 20
_ALT: Final = "Effect of each patched unit, as a share of the difference; the table below has the largest"
_HEADINGS: Final = {"neurons": "layer · neuron", "heads": "layer · head", "layers": "layer · half"}


def cause_section(cause: Cause, figures: Sequence[Path]) -> Iterable[str]:
    """What causes the difference, beside what reacts to it."""
    yield "<h2>What causes the difference</h2>"
    yield (
        f"<p>A unit that reacts need not cause anything. So {len(cause.patched):,} of {cause.units:,} "
        f"{cause.kind} were exchanged between the two prompts of each pair, one at a time, and "
        f"nothing else was: what then changes in the next token's logits is that unit's doing. "
        f"{escape(what_causes(cause))}</p>"
    )
    yield (
        f"<p>The two prompts' next-token distributions differ by {between(cause.distance)} (total variation: "
        f"0 equal, 1 disjoint); {_agreement(cause)}.</p>"
    )
    yield from (figure(path, _ALT) for path in figures if path.suffix in (".png", ".svg"))
    yield table(
        "Effect: per cent of the logits' difference that the exchange moves, with 95 % intervals (bootstrap "
        "over templates); negative: it works against the difference. Effects needn't add up to 100. "
        "Estimate: the same by the gradient alone. Reaction: how far the activations are apart",
        (_HEADINGS[cause.kind], "effect, %", "estimate, %", "reaction", "place by reaction"),
        [
            (
                escape(unit.name),
                between(unit.effect, scale=100),
                three_digits(100 * unit.estimate),
                three_digits(unit.reaction),
                f"{unit.reaction_rank:,}",
            )
            for unit in cause.patched[:_MOST_UNITS]
        ],
    )
    if len(cause.patched) < cause.units:
        yield (
            "<p>Patched were those with the largest estimates and those that react most. A unit that is in "
            "neither group may still matter: an estimate from a gradient misses what only a large "
            "step changes.</p>"
        )


def _agreement(cause: Cause) -> str:
    if cause.agreement is None:
        return "reaction and effect can't be compared"
    return (
        f"over all {cause.kind} the rank correlation of reaction and effect is "
        f"{three_digits(cause.agreement)} (1: reaction tells the cause, 0: it tells nothing)"
    )


def generation_section(found: Generations) -> Iterable[str]:
    """What the model says to both prompts."""
    yield "<h2>What the model says</h2>"
    yield (
        f"<p>Each prompt of {found.pairs:,} pairs was continued {found.samples:,} times, by at most "
        f"{found.max_new_tokens:,} tokens at temperature 1. {escape(what_is_said(found))} The texts lie in "
        "generations.jsonl beside this report.</p>"
    )
    rows = {
        "how much likelier behind its own prompt, nats a token": (found.divergence, "0"),
        "length, tokens (second − first)": (found.length_difference, "0"),
        "overlap of the two prompts' texts": (
            found.overlap,
            f"{between(found.overlap_within)} within a prompt",
        ),
        "sentiment (second − first, −1 to 1)": (found.sentiment_difference, "0"),
    }
    yield table(
        f"With 95 % intervals (bootstrap over templates); sentiment by {found.lexicon}, which knows a word "
        f"of {found.lexicon_known:.0%} of the texts",
        ("measure", "found", "alike would be"),
        [(escape(name), between(interval), alike) for name, (interval, alike) in rows.items()],
    )


_QUANTITIES: Final = {
    NEXT_TOKEN: "distance of the next-token distributions",
    DIVERGENCE: "how much likelier behind its own prompt, nats a token",
    LENGTH: "length, tokens (second − first)",
    SENTIMENT: "sentiment (second − first, −1 to 1)",
}


def continuations_section(changes: ContinuationChanges) -> Iterable[str]:
    """What changed in how alike the two prompts of a pair are continued."""
    yield "<h2>What follows the prompts, compared with the baseline</h2>"
    least = ", ".join(f"{value:g} ({_QUANTITIES[name]})" for name, value in changes.size_margins.items())
    judged = f"Distances are judged by their relative change against a margin of {100 * changes.margin:g} %"
    also = f"; signed differences by how far from 0 their means lie, against margins of {least}"
    entries = {**changes.distances, **changes.sizes}
    yield table(
        judged + (also if changes.sizes else ""),
        ("quantity", "before", "after", "change", "outcome"),
        [
            (
                escape(_QUANTITIES[name]),
                three_digits(change.before),
                three_digits(change.after),
                f"{between(change.relative_change, scale=100)} %"
                if name in changes.distances
                else between(change.delta),
                outcome(change.outcome),
            )
            for name, change in entries.items()
        ],
    )
