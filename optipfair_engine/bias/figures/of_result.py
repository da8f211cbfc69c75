"""The figures of a whole result: the chart of all layers, and what patching found."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Final

from optipfair_engine.bias.figures.chart import chart_of
from optipfair_engine.bias.figures.effects import effects_of
from optipfair_engine.bias.figures.fonts import warnings_about
from optipfair_engine.bias.figures.kinds import Style
from optipfair_engine.bias.figures.writing import draw_to_file
from optipfair_engine.bias.results.result import BiasResult
from optipfair_engine.bias.sections import EFFECTS
from optipfair_engine.bias.statistics.profile import Profile
from optipfair_engine.options.bias import BiasOptions
from optipfair_engine.progress import Reporter

CHART: Final = "mean_diff"


def draw_result(
    result: BiasResult,
    profile: Profile,
    baseline: Profile | None,
    options: BiasOptions,
    output: Path,
    report: Reporter,
) -> BiasResult:
    """Draw them beside those of single pairs, unless no figure is asked for.

    Args:
        result: what was found.
        profile: the pairs, with the names of the figures that are drawn already.
        baseline: the same pairs of the model that ``result`` is compared with.
        options: which figures, and their format.
        output: the folder that they go to.
        report: progress; stage "plot".

    Returns:
        The result with the names of all its figures.
    """
    chosen = options.visualization_types
    if result.activations is None or (chosen is not None and not chosen):
        return result
    figures = list(profile.figures)
    chart = chart_of(result, profile.aliases, baseline.layer_means() if baseline is not None else {})
    if chart.panels:
        name = f"{CHART}.{options.figure_format}"
        draw_to_file(chart, Style(), output / name)
        figures.insert(0, name)
        report("plot", len(figures), len(figures), name)
    if result.cause is not None:
        name = f"{EFFECTS}.{options.figure_format}"
        draw_to_file(effects_of(result.cause, result.model), Style(), output / name)
        figures.append(name)
        report("plot", len(figures), len(figures), name)
    prompts = [text for pair in profile.pairs for text in (pair.first.text, pair.second.text)]
    return replace(
        result,
        figures=tuple(figures),
        figure_warnings=tuple(warnings_about(prompts if profile.figures else [])),
    )
