"""One HTML file with a bias job's results: the conclusion, tables, warnings and figures, nothing fetched."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Final

from optipfair_engine.bias.behaviour.tables import behaviour, of_pairs, of_suite, preference_changes
from optipfair_engine.bias.framing import asked_section, unsaid_section
from optipfair_engine.bias.html import figure, outcome, page, table, yes_or_no
from optipfair_engine.bias.results.changes import Compared, ProfileComparison
from optipfair_engine.bias.results.differences import ActivationSummary, RankedNeurons
from optipfair_engine.bias.results.result import BiasResult
from optipfair_engine.bias.sections import EFFECTS, cause_section, continuations_section, generation_section
from optipfair_engine.bias.statistics.profile import Profile
from optipfair_engine.bias.wording import between, conclusion, p_value, three_digits

#: Figures in one report: more would make a file that no browser opens gladly; the rest lie beside it.
MOST_FIGURES: Final = 36
_MOST_PAIRS: Final = 100
_MOST_NEURONS: Final = 20


def write_report(result: BiasResult, profile: Profile | None, path: Path) -> None:
    """Write the report.

    Args:
        result: what was found.
        profile: the pairs, if there are any; png and svg figures that lie beside the report are embedded.
        path: the file to write.
    """
    title = f"Bias of {result.model}"
    if result.baseline is not None:
        title += f", compared with {result.baseline}"
    path.write_text(page(title, _sections(result, profile, path.parent)), encoding="utf-8")


def _sections(result: BiasResult, profile: Profile | None, folder: Path) -> Iterable[str]:
    yield f'<p class="conclusion">{escape(conclusion(result))}</p>'
    if result.warnings:
        items = "".join(f"<li>{escape(text)}</li>" for text in result.warnings)
        yield f'<ul class="warnings">{items}</ul>'
    yield from asked_section(result)
    figures = [folder / name for name in result.figures]
    charts = [path for path in figures if "_pair" not in path.stem and path.stem != EFFECTS]
    yield from _figures(charts, "How far apart the prompts are, layer by layer")
    if isinstance(result.comparison, ProfileComparison):
        yield from _changes(result.comparison)
    elif result.comparison is not None:
        yield preference_changes(result.comparison)
    if result.activations is not None:
        yield from _activations(result.activations)
    if result.neurons is not None:
        yield from _neurons(result.neurons)
    if result.cause is not None:
        yield from cause_section(result.cause, [path for path in figures if path.stem == EFFECTS])
    if result.generations is not None:
        yield from generation_section(result.generations)
    if result.continuations is not None:
        yield from continuations_section(result.continuations)
    if result.behaviour is not None:
        yield from behaviour(result.behaviour, result.baseline_behaviour)
    for own in result.pair_suites:
        yield from of_pairs(own)
    for suite in result.suites:
        yield from of_suite(suite)
    yield from unsaid_section(result)
    if profile is not None:
        yield from _pairs(profile)
    yield from _figures([path for path in figures if "_pair" in path.stem], "Figures of single pairs")


def _activations(activations: ActivationSummary) -> Iterable[str]:
    yield "<h2>How far apart the prompts are inside the model</h2>"
    share = activations.alignment.mean_share_aligned
    yield (
        f"<p>{_count(activations.pairs, 'pair')} from {_count(activations.templates, 'template')}, "
        f"{_count(activations.control_pairs, 'control pair')}; {share:.1%} of the tokens could be "
        "compared.</p>"
    )
    entries = {"overall": activations.overall, **activations.components}
    yield table(
        "Mean |activation 2 − activation 1| from the first difference on, with 95 % intervals (bootstrap "
        "over templates); effect: as a multiple of the control pairs' difference",
        ("component", "mean difference", "control pairs", "effect", "above noise", "minimum detectable"),
        [
            (
                escape(name),
                between(entry.mean),
                three_digits(entry.noise.floor.value) if entry.noise is not None else "–",
                between(entry.noise.effect if entry.noise is not None else None),
                yes_or_no(entry.noise.above if entry.noise is not None else None),
                three_digits(entry.minimum_detectable),
            )
            for name, entry in entries.items()
        ],
    )


def _changes(comparison: ProfileComparison) -> Iterable[str]:
    yield "<h2>Compared with the baseline</h2>"
    yield f"<p>Overall is over {escape(_compared(comparison.compared))}.</p>"
    entries = {"overall": comparison.overall, **comparison.components}
    yield table(
        "Mean difference; the outcome is judged by the relative change (percent) against a margin of "
        f"{100 * comparison.margin:g} %",
        ("component", "before", "after", "relative change, %", "outcome"),
        [
            (
                escape(name),
                three_digits(entry.before),
                three_digits(entry.after),
                between(entry.relative_change, scale=100),
                outcome(entry.outcome),
            )
            for name, entry in entries.items()
        ],
    )


def _compared(compared: Compared) -> str:
    if not compared.components:
        return "nothing: no component has the same size in both models"
    before, after = _count(len(compared.layers_before), "layer"), len(compared.layers_after)
    return f"{', '.join(compared.components)} ({before} before, {after} after)"


def _neurons(neurons: RankedNeurons) -> Iterable[str]:
    yield "<h2>Neurons</h2>"
    units = _count(neurons.units, neurons.unit)
    if neurons.tested:
        dependent = " that are not independent" if neurons.unit == "pair" else ""
        yield (
            f"<p>{neurons.significant:,} of {neurons.tested:,} neurons react to the attribute consistently "
            f"(false discovery rate {neurons.false_discovery_rate:.0%}, {units}{dependent}).</p>"
        )
    else:
        verb = "is" if neurons.units == 1 else "are"
        yield f"<p>Ranked by effect and not tested: {units} {verb} too few.</p>"
    yield table(
        "Mean difference is signed (second − first prompt); output effect is it times the norm of the "
        "neuron's output weights",
        ("layer · neuron", "mean difference", "output effect", "q", "significant", "same sign"),
        [
            (
                f"{entry.layer} · {entry.neuron}",
                three_digits(entry.mean_difference),
                three_digits(entry.output_effect),
                p_value(entry.q_value),
                yes_or_no(entry.significant),
                f"{entry.consistency:.0%}",
            )
            for entry in neurons.neurons[:_MOST_NEURONS]
        ],
    )


def _pairs(profile: Profile) -> Iterable[str]:
    yield "<h2>Prompt pairs</h2>"
    shown = profile.pairs[:_MOST_PAIRS]
    yield table(
        f"{len(shown)} of {len(profile.pairs)} pairs",
        ("pair", "prompt 1", "prompt 2", "tokens compared"),
        [
            (
                f"pair_{pair.index + 1}",
                escape(pair.first.text),
                escape(pair.second.text),
                f"{pair.alignment.share_aligned:.0%}",
            )
            for pair in shown
        ],
        texts=(0, 1, 2),
    )


def _figures(drawn: Sequence[Path], heading: str) -> Iterable[str]:
    paths = sorted(drawn, key=lambda path: (path.stem.split("_pair")[-1].zfill(9), path.name))
    if not paths:
        return
    yield f"<h2>{heading}</h2>"
    if paths[0].suffix not in (".png", ".svg"):
        names = escape(paths[0].name) + (f" … {escape(paths[-1].name)}" if len(paths) > 1 else "")
        files = _count(len(paths), f"{paths[0].suffix[1:]} file")
        lies = "lies" if len(paths) == 1 else "lie"
        yield f"<p>{files} {lies} beside this report, which can't show this format: {names}.</p>"
        return
    if len(paths) > 1:
        yield f"<p>{min(len(paths), MOST_FIGURES)} of {len(paths)}; all lie beside this report.</p>"
    yield from (figure(path, _described(path.stem)) for path in paths[:MOST_FIGURES])


_KINDS: Final[Mapping[str, str]] = {
    "mean_diff": "Bar chart of the mean difference by layer",
    "heatmap": "Heatmap of the differences, tokens down and neurons across",
    "pca": "Tokens of both prompts on their first two principal components",
}


def _described(stem: str) -> str:
    """What a figure shows, for readers who can't see it."""
    kind = next((kind for kind in _KINDS if stem.startswith(f"{kind}_")), None)
    if kind is None:
        return (
            "Line chart, a panel for each component: mean difference by layer over all pairs, with its 95 % "
            "interval; the table below has the components' means"
        )
    place, _, pair = stem.removeprefix(f"{kind}_").rpartition("_pair")
    return f"{_KINDS[kind]}: {place}, pair_{int(pair) + 1}"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"
