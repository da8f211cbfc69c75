"""Run prompt pairs through a model once: metrics, figures, and whatever else looks at the same stream."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from optipfair_engine.architectures import locate
from optipfair_engine.bias.batching import TOKEN_BUDGET
from optipfair_engine.bias.components import LAYER_TYPES, find_sites
from optipfair_engine.bias.defaults import PromptPair
from optipfair_engine.bias.drawing import Painter, check_format
from optipfair_engine.bias.pictures import PictureConsumer, Sink, give_bars, plan_figures
from optipfair_engine.bias.plots import Picture, Style
from optipfair_engine.bias.profile import Profile, ProfileConsumer
from optipfair_engine.bias.stream import Consumer, encode_pairs, pairs_in_template_order, run_pairs
from optipfair_engine.progress import Reporter, null_reporter


def analyze_pairs(
    model: Any,
    tokenizer: Any,
    prompt_pairs: Sequence[PromptPair],
    *,
    visualization_types: Sequence[str] = (),
    layers: str | Sequence[int] = "first_middle_last",
    layer_types: Sequence[str] | None = None,
    folder: Path | None = None,
    display: Sink | None = None,
    figure_format: str = "png",
    style: Style | None = None,
    templates: Sequence[str] | None = None,
    extra_targets: Sequence[str] = (),
    consumers: Sequence[Consumer] = (),
    token_budget: int = TOKEN_BUDGET,
    report: Reporter = null_reporter,
) -> Profile:
    """One forward pass a batch; figures go to ``folder`` (in other processes) or to ``display``, or nowhere.

    ``consumers`` see the same stream, of the guide's six components and ``extra_targets``, one template's
    pairs after the other. Progress: "bias" a batch, "plot" a figure.

    Raises:
        InvalidOptionError: an unknown option, or no pairs.
        UnsupportedModelError: unknown family.
    """
    check_format(figure_format)
    view = locate(model)
    pairs = encode_pairs(tokenizer, prompt_pairs, templates)
    sites = find_sites(view, (*LAYER_TYPES, *extra_targets))
    keys = [site.key for site in sites if site.key.rpartition("_layer_")[0] in LAYER_TYPES]
    plan = plan_figures(keys, visualization_types, layers, layer_types)
    name, profiles = model_name_of(model), ProfileConsumer(keys)
    with ExitStack() as stack:
        sink = _sink(
            stack, folder, display, figure_format, style or Style(), plan.per_pair * len(pairs), report
        )
        looking: list[Consumer] = [profiles, *consumers]
        if sink is not None:
            looking.append(PictureConsumer(plan, name, sink))
        ordered = list(pairs_in_template_order(pairs))
        run_pairs(view, ordered, sites, looking, token_budget=token_budget, report=report)
        profile = profiles.result()
        if sink is not None:
            give_bars(plan, profile, name, sink)
    return profile


def _sink(
    stack: ExitStack,
    folder: Path | None,
    display: Sink | None,
    figure_format: str,
    style: Style,
    expected: int,
    report: Reporter,
) -> Sink | None:
    if folder is None or expected == 0:
        return display if expected else None
    target = folder
    painter = stack.enter_context(Painter(expected, report=report))

    def submit(name: str, picture: Picture) -> None:
        painter.submit(picture, style, target / f"{name}.{figure_format}")

    return submit


def model_name_of(model: Any) -> str:
    """What to call the model in titles: the last part of where it was loaded from, or its family."""
    name = str(getattr(model.config, "_name_or_path", "") or "")
    return Path(name).name or f"{model.config.model_type} model"
