"""The guide's ``visualize_*`` functions: thin wrappers that keep its signatures, names and return values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from optipfair_engine.architectures import locate
from optipfair_engine.bias.activations.components import LAYER_TYPES, find_sites
from optipfair_engine.bias.activations.pairs import select_layers
from optipfair_engine.bias.activations.stream import encode_pairs, run_pairs
from optipfair_engine.bias.analysis import analyze_pairs, model_name_of
from optipfair_engine.bias.defaults import DEFAULT_PROMPT_PAIRS, PromptPair
from optipfair_engine.bias.figures.canvas import save
from optipfair_engine.bias.figures.drawing import draw
from optipfair_engine.bias.figures.kinds import FigureData, Style, check_figsize
from optipfair_engine.bias.figures.selection import (
    FigureConsumer,
    FigurePlan,
    check_key,
    give_bars,
    names_of,
)
from optipfair_engine.bias.figures.writing import check_format
from optipfair_engine.bias.statistics.profile import PairMetrics, ProfileConsumer, write_pair_metrics
from optipfair_engine.figures import notebook
from optipfair_engine.progress.bars import progress_bars


def visualize_bias(
    model: Any,
    tokenizer: Any,
    prompt_pairs: Sequence[PromptPair] | None = None,
    visualization_types: Sequence[str] = ("mean_diff", "heatmap", "pca"),
    layers: str | Sequence[int] = "first_middle_last",
    output_dir: str | Path | None = None,
    figure_format: str = "png",
    show_progress: bool = True,
    layer_types: Sequence[str] | None = None,
    **visualization_params: Any,
) -> tuple[None, PairMetrics]:
    """Metrics and figures of prompt pairs.

    Args:
        model: a Hugging Face model of a supported family.
        tokenizer: its tokenizer.
        prompt_pairs: (prompt 1, prompt 2) tuples; None: ``DEFAULT_PROMPT_PAIRS``.
        visualization_types: any of ``mean_diff``, ``heatmap``, ``pca``; empty: metrics only.
        layers: ``"first_middle_last"``, ``"all"`` or positions; which layers are drawn (metrics are of all).
        output_dir: folder for the figures and ``bias_metrics.json``, made if need be; None: figures are
            displayed
            in a notebook, and nothing is written.
        figure_format: png, svg or pdf.
        show_progress: whether to show a progress bar.
        layer_types: components to draw; by default the guide's.
        **visualization_params: fields of ``Style`` (``dpi``, ``figsize``, ``cmap``,
        ``highlight_diff``).

    Returns:
        ``(None, metrics)``: ``metrics["pair_1"]`` … have ``prompt1``, ``prompt2`` and ``metrics`` (see
        ``calculate_bias_metrics``). Figures count pairs from 0, metrics from 1, as in the guide.

    Raises:
        InvalidOptionError: an unknown option, or no pairs.
        UnsupportedModelError: unknown family.
    """
    pairs = DEFAULT_PROMPT_PAIRS if prompt_pairs is None else prompt_pairs
    style = _style(visualization_params)
    folder = Path(output_dir) if output_dir is not None else None
    with progress_bars(show_progress) as report:
        profile = analyze_pairs(
            model,
            tokenizer,
            pairs,
            visualization_types=visualization_types,
            layers=layers,
            layer_types=layer_types,
            folder=folder,
            display=None if folder is not None else _notebook_display(style),
            figure_format=figure_format,
            style=style,
            report=report,
        )
    if folder is not None:
        write_pair_metrics(profile, folder / "bias_metrics.json")
    return None, PairMetrics(profile)


def visualize_mean_differences(
    model: Any,
    tokenizer: Any,
    prompt_pair: PromptPair,
    layer_type: str = "mlp_output",
    layers: str | Sequence[int] = "first_middle_last",
    output_dir: str | Path | None = None,
    figure_format: str = "png",
    pair_index: int = 0,
    layer_key: str | None = None,
    **params: Any,
) -> Figure:
    """Bar chart ``mean_diff_{layer_type}_pair{pair_index}`` of the mean differences by layer.

    Arguments as ``visualize_bias``; ``layer_key`` (``attention_output_layer_2``) names one layer, in place of
    ``layer_type`` and ``layers``. Returns the figure. Raises InvalidOptionError for a component or layer that
    the model lacks (the text lists what there is).
    """

    def plan(keys: Sequence[str]) -> FigurePlan:
        if layer_key is not None:
            return FigurePlan({check_key(keys, layer_key).rpartition("_layer_")[0]: [layer_key]}, (), ())
        return FigurePlan({layer_type: select_layers(names_of(keys, layer_type), layers)}, (), ())

    return _one_figure(
        (model, tokenizer, prompt_pair),
        plan,
        (output_dir, figure_format, pair_index),
        _style(params),
    )


def visualize_heatmap(
    model: Any,
    tokenizer: Any,
    prompt_pair: PromptPair,
    layer_key: str,
    output_dir: str | Path | None = None,
    figure_format: str = "png",
    pair_index: int = 0,
    **params: Any,
) -> Figure:
    """Heatmap ``heatmap_{layer_key}_pair{pair_index}``: tokens by neurons; returns the figure.

    Raises InvalidOptionError "Layer X not found in activations", with a list of what there is.
    """
    return _one_figure(
        (model, tokenizer, prompt_pair),
        lambda keys: FigurePlan({}, (check_key(keys, layer_key),), ()),
        (output_dir, figure_format, pair_index),
        _style(params),
    )


def visualize_pca(
    model: Any,
    tokenizer: Any,
    prompt_pair: PromptPair,
    layer_key: str,
    highlight_diff: bool = True,
    output_dir: str | Path | None = None,
    figure_format: str = "png",
    pair_index: int = 0,
    **params: Any,
) -> Figure:
    """PCA ``pca_{layer_key}_pair{pair_index}`` of both prompts' positions; returns the figure.

    ``highlight_diff`` marks the changed tokens. Raises InvalidOptionError "Layer X not found in activations".
    """
    return _one_figure(
        (model, tokenizer, prompt_pair),
        lambda keys: FigurePlan({}, (), (check_key(keys, layer_key),)),
        (output_dir, figure_format, pair_index),
        _style({**params, "highlight_diff": highlight_diff}),
    )


def _one_figure(
    subject: tuple[Any, Any, PromptPair],
    make_plan: Any,
    target: tuple[str | Path | None, str, int],
    style: Style,
) -> Figure:
    model, tokenizer, pair = subject
    output_dir, figure_format, pair_index = target
    check_format(figure_format)
    view = locate(model)
    encoded = encode_pairs(tokenizer, [pair], causal=view.is_causal)
    sites = find_sites(view, LAYER_TYPES)
    plan = make_plan([site.key for site in sites])
    check_figsize(style, plan.kinds)
    wanted = {*plan.heatmaps, *plan.pcas, *(key for names in plan.bars.values() for key in names)}
    sites = [site for site in sites if site.key in wanted]
    made: list[tuple[str, FigureData]] = []

    def keep(name: str, data: FigureData) -> None:
        made.append((name, data))

    profile = ProfileConsumer([site.key for site in sites])
    name = model_name_of(model)
    run_pairs(view, encoded, sites, [profile, FigureConsumer(plan, name, keep, pair_index)])
    give_bars(plan, profile.result(), name, keep, pair_index)
    figure = draw(made[0][1], style)
    if output_dir is not None:
        save(figure, Path(output_dir) / f"{made[0][0]}.{figure_format}", style.dpi)
    else:
        figure.show_in_notebook()
    return figure


def _style(params: dict[str, Any]) -> Style:
    known = [field.name for field in fields(Style)]
    unknown = sorted(set(params) - set(known))
    if unknown:
        raise TypeError(f"unexpected visualization parameters {unknown}; there are {', '.join(known)}")
    return Style(**params)


def _notebook_display(style: Style) -> Any:
    """What shows the figures of a whole analysis: only a notebook has something to show them in."""
    return (lambda _name, data: draw(data, style).show_in_notebook()) if notebook() is not None else None
