"""The one chart of a bias job: every component's mean difference by layer, over all pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from optipfair_engine.bias.activations.keys import split_key
from optipfair_engine.bias.figures.canvas import BLUE, GREY, INK, NOTE, ORANGE, SIDE, TICK, new_figure, plain
from optipfair_engine.bias.figures.kinds import ChartData, Panel, Style
from optipfair_engine.bias.results.differences import Difference
from optipfair_engine.bias.results.result import BiasResult
from optipfair_engine.bias.wording import three_digits
from optipfair_engine.figures import Drawing

_COLUMNS = 2
#: Inches: a row of panels, what is above the first one, and what is below the last.
_ROW, _TOP, _BOTTOM = 2.1, 1.25, 0.2


def chart_of(result: BiasResult, aliases: Mapping[str, str], baseline: Mapping[str, float]) -> ChartData:
    """The chart of a result; it has no panel where nothing was compared.

    Args:
        result: of prompt pairs.
        aliases: keys whose tensor is another key's.
        baseline: layer key → the other model's mean; empty without one.
    """
    found = result.activations
    if found is None:
        return ChartData("", "", ())
    panels = chart_panels(found.layers, aliases, baseline)
    subtitle = (
        f"{result.model} · {found.pairs} pairs, {found.templates} templates, {found.control_pairs} control "
        "pairs · mean |activation 2 − activation 1| from the first difference on"
    )
    baseline_name = result.baseline if any(panel.baseline is not None for panel in panels) else None
    return ChartData(_title(found.overall), subtitle, panels, baseline_name)


def _title(overall: Difference) -> str:
    effect = overall.noise.effect if overall.noise is not None else None
    if effect is None:
        return "How far apart the two prompts of a pair are, layer by layer"
    times = f"{three_digits(effect.value)} times as far apart as rewordings"
    if effect.low is None or effect.high is None:
        return f"Prompts of a pair are {times} (too few templates for an interval)"
    limits = f"{three_digits(effect.low)} … {three_digits(effect.high)}"
    if effect.low <= 1 <= effect.high:
        return f"Prompts of a pair are not shown to differ more than rewordings ({limits} times)"
    return f"Prompts of a pair are {times} ({limits})"


def chart_panels(
    layers: Mapping[str, Difference], aliases: Mapping[str, str], baseline: Mapping[str, float]
) -> list[Panel]:
    """One panel a component; a tensor with two names has one, under the guide's first name.

    Args:
        layers: layer key → mean difference over pairs.
        aliases: keys whose tensor is another key's.
        baseline: layer key → the other model's mean; empty without one.
    """
    named = {value: key for key, value in aliases.items()}
    groups: dict[str, list[str]] = {}
    for key in layers:
        component = (split_key(key) or (key, 0))[0]
        groups.setdefault(component, []).extend([] if key in named else [key])
    panels = []
    for component, keys in groups.items():
        measured = [(key, layers[key]) for key in keys if layers[key].mean is not None]
        if measured:
            other = next((aliases[key].rpartition("_layer_")[0] for key in keys if key in aliases), None)
            panels.append(_panel(component + (f" (= {other})" if other else ""), measured, baseline))
    return panels


def _panel(name: str, entries: Sequence[tuple[str, Difference]], baseline: Mapping[str, float]) -> Panel:
    means = [entry.mean for _, entry in entries if entry.mean is not None]
    low = [mean.low for mean in means if mean.low is not None]
    high = [mean.high for mean in means if mean.high is not None]
    floors = [entry.noise.floor.value for _, entry in entries if entry.noise is not None]
    others = [baseline[key] for key, _ in entries if key in baseline]
    return Panel(
        name,
        [(split_key(key) or (key, 0))[1] for key, _ in entries],
        [mean.value for mean in means],
        low if len(low) == len(means) else None,
        high if len(high) == len(means) else None,
        floors if len(floors) == len(means) else None,
        others if len(others) == len(means) else None,
    )


def draw_chart(data: ChartData, style: Style) -> Drawing:
    """Small multiples, each with its own scale: components have units of their own."""
    rows = -(-len(data.panels) // _COLUMNS)
    size = (10.2, _TOP + _BOTTOM + _ROW * rows)
    figure = new_figure(size, style, data.title, data.subtitle)
    width, height = figure.get_size_inches()
    grid = figure.subplots(rows, _COLUMNS, squeeze=False)
    figure.subplots_adjust(
        left=0.75 / width, right=1 - 0.3 / width, bottom=(_BOTTOM + 0.4) / height,
        top=1 - (_TOP + 0.12) / height, wspace=0.18, hspace=0.62,
    )  # fmt: skip
    for number, axes in enumerate(grid.flat):
        if number < len(data.panels):
            _draw_panel(
                axes, data.panels[number], data.baseline, is_last=number + _COLUMNS >= len(data.panels)
            )
            axes.set_ylabel(
                "mean |Δ| (activation)" if number % _COLUMNS == 0 else "", fontsize=NOTE, color=INK
            )
        else:
            axes.set_visible(False)
    found = {text.get_label(): text for axes in grid.flat for text in axes.get_legend_handles_labels()[0]}
    figure.legend(
        list(found.values()), list(found), loc="upper left", ncols=4, frameon=False, fontsize=NOTE,
        bbox_to_anchor=((SIDE - 0.1) / width, 1 - 0.74 / height), borderaxespad=0,
    )  # fmt: skip
    return figure


def _draw_panel(axes: Axes, panel: Panel, baseline: str | None, *, is_last: bool) -> None:
    single = "o" if len(panel.layers) == 1 else None
    if panel.low is not None and panel.high is not None:
        label = "95 % interval (bootstrap over templates)"
        axes.fill_between(panel.layers, panel.low, panel.high, color=BLUE, alpha=0.18, lw=0, label=label)
    axes.plot(panel.layers, panel.means, color=BLUE, lw=1.8, marker=single, label="prompt pairs")
    if panel.controls is not None:
        axes.plot(
            panel.layers, panel.controls, color=INK, lw=1.2, ls=(0, (4, 2)), marker=single,
            label="control pairs (noise floor)",
        )  # fmt: skip
    if panel.baseline is not None:
        label = f"baseline: {baseline}"
        axes.plot(panel.layers, panel.baseline, color=ORANGE, lw=1.5, marker=single, label=label)
    axes.set_title(panel.name, fontsize=10, color=INK, loc="left")
    axes.set_ylim(bottom=0)
    axes.margins(x=0.01)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    plain(axes)
    axes.tick_params(labelsize=TICK, colors=INK, color=GREY)
    if is_last:
        axes.set_xlabel("layer", fontsize=NOTE, color=INK)
