"""Run prompt pairs through a model once: metrics, figures, and whatever else looks at the same stream."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from optipfair_engine.architectures import locate
from optipfair_engine.bias.activations.batching import TOKEN_BUDGET
from optipfair_engine.bias.activations.components import LAYER_TYPES, NEURONS, Site, find_sites, last_output
from optipfair_engine.bias.activations.stream import (
    Consumer,
    EncodedPair,
    encode_pairs,
    pairs_in_template_order,
    run_pairs,
)
from optipfair_engine.bias.defaults import PromptPair
from optipfair_engine.bias.figures.kinds import FigureData, Style, check_figsize
from optipfair_engine.bias.figures.selection import FigureConsumer, Sink, give_bars, plan_figures
from optipfair_engine.bias.figures.writing import FigureWriter, check_format
from optipfair_engine.bias.results.differences import RankedNeurons
from optipfair_engine.bias.statistics.neurons import (
    NeuronConsumer,
    NeuronStatistics,
    output_norms,
    rank_neurons,
)
from optipfair_engine.bias.statistics.profile import Profile, ProfileConsumer
from optipfair_engine.bias.statistics.significance import Array
from optipfair_engine.checkpoints.manifest import model_name
from optipfair_engine.errors import InvalidOptionError
from optipfair_engine.progress import Reporter, null_reporter


class NeuronRanking:
    """Ranks a model's neurons from the same stream: give it to ``analyze_pairs``, then ask for ``result``."""

    def __init__(self, model: Any, *, top: int | None = 50) -> None:
        self._view, self._top = locate(model), top
        self._consumer: NeuronConsumer | None = None
        self._sites: Sequence[Site] = ()

    def start(self, pairs: Sequence[EncodedPair], sites: Sequence[Site]) -> NeuronConsumer:
        """The consumer of a run over these pairs."""
        self._consumer, self._sites = NeuronConsumer(pairs), sites
        return self._consumer

    def result(self) -> RankedNeurons:
        """The ranking (see ``rank_neurons``).

        Raises:
            InvalidOptionError: nothing was run.
        """
        statistics, norms = self.statistics()
        unit = self._consumer.unit if self._consumer is not None else "pair"
        return rank_neurons(statistics, norms, unit=unit, top=self._top)

    def statistics(self) -> tuple[dict[int, NeuronStatistics], dict[int, Array]]:
        """Layer → statistics of its neurons, and layer → norms of their output weights.

        Raises:
            InvalidOptionError: nothing was run.
        """
        if self._consumer is None:
            raise InvalidOptionError("No pairs were run for the neuron ranking")
        return self._consumer.result(), output_norms(self._view, self._sites)


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
    ranking: NeuronRanking | None = None,
    model_name: str | None = None,
    token_budget: int = TOKEN_BUDGET,
    report: Reporter = null_reporter,
) -> Profile:
    """One forward pass a batch; figures go to ``folder`` (in other processes) or to ``display``, or nowhere.

    ``ranking`` sees the same stream, one template's pairs after the other. Figures call the model
    ``model_name``, by default the folder or hub id that it was loaded from. Progress: "bias" a batch, "plot"
    a figure.

    Raises:
        InvalidOptionError: an unknown option, or no pairs.
        UnsupportedModelError: unknown family.
    """
    check_format(figure_format)
    view = locate(model)
    pairs = encode_pairs(tokenizer, prompt_pairs, templates, causal=view.is_causal)
    sites = find_sites(view, (*LAYER_TYPES, NEURONS) if ranking is not None else LAYER_TYPES)
    keys = [site.key for site in sites if site.key.rpartition("_layer_")[0] in LAYER_TYPES]
    end = last_output(view)
    plan = plan_figures(keys, visualization_types, layers, layer_types)
    check_figsize(style or Style(), plan.kinds)
    name, profiles, ends = (
        model_name or model_name_of(model),
        ProfileConsumer(keys),
        ProfileConsumer([end.key]),
    )
    written: list[str] = []
    with ExitStack() as stack:
        sink = _sink(
            stack,
            folder,
            display,
            figure_format,
            style or Style(),
            plan.per_pair * len(pairs),
            report,
            written,
        )
        looking: list[Consumer] = [profiles, ends]
        if ranking is not None:
            looking.append(ranking.start(pairs, sites))
        if sink is not None:
            looking.append(FigureConsumer(plan, name, sink))
        ordered = list(pairs_in_template_order(pairs))
        run_pairs(view, ordered, [*sites, end], looking, token_budget=token_budget, report=report)
        profile = profiles.result()
        profile.last_output = ends.result()
        if sink is not None:
            give_bars(plan, profile, name, sink)
    profile.figures = tuple(written)
    return profile


def _sink(
    stack: ExitStack,
    folder: Path | None,
    display: Sink | None,
    figure_format: str,
    style: Style,
    expected: int,
    report: Reporter,
    written: list[str],
) -> Sink | None:
    if folder is None or expected == 0:
        return display if expected else None
    target = folder
    writer = stack.enter_context(FigureWriter(expected, report=report))

    def submit(name: str, data: FigureData) -> None:
        writer.submit(data, style, target / f"{name}.{figure_format}")
        written.append(f"{name}.{figure_format}")

    return submit


def model_name_of(model: Any) -> str:
    """What to call the model in titles: the folder or the hub's id that it was loaded from, or its family."""
    name = str(getattr(model.config, "_name_or_path", "") or "")
    return model_name(name) if name else f"{model.config.model_type} model"
