"""Which neurons react to the attribute: signed, consistent over templates, corrected for their number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from optipfair_engine.architectures import ModelView
from optipfair_engine.bias.activations.components import NEURONS, Site
from optipfair_engine.bias.activations.keys import split_key
from optipfair_engine.bias.activations.stream import BatchUnits, EncodedPair
from optipfair_engine.bias.results.differences import RankedNeuron, RankedNeurons
from optipfair_engine.bias.statistics.significance import Array, benjamini_hochberg, t_test
from optipfair_engine.errors import InvalidOptionError, UnsupportedModelError

#: False discovery rate below which a neuron counts as significant.
FDR: Final = 0.05
#: Fewer independent units give no test worth the name.
FEWEST_UNITS: Final = 3


@dataclass
class _Running:
    """Welford's mean and squared deviations over finished units, and the sum of the current one."""

    mean: Tensor
    squares: Tensor
    positive: Tensor
    negative: Tensor
    total: Tensor
    count: int = 0
    pairs: int = 0

    @classmethod
    def zeros(cls, features: int) -> _Running:
        mean, squares, positive, negative, total = torch.zeros(5, features, dtype=torch.float64)
        return cls(mean, squares, positive, negative, total)

    def finish(self) -> None:
        """Count the current unit's mean as one observation (Welford 1962)."""
        if not self.pairs:
            return
        value = self.total / self.pairs
        self.count += 1
        step = value - self.mean
        self.mean += step / self.count
        self.squares += step * (value - self.mean)
        self.positive += value > 0
        self.negative += value < 0
        self.total.zero_()
        self.pairs = 0


@dataclass(frozen=True)
class NeuronStatistics:
    """One layer's neurons: signed mean difference (second − first prompt) over units, and how it varies."""

    mean: Array
    squares: Array
    consistency: Array
    count: int


class NeuronConsumer:
    """Mean signed difference of every neuron from the first difference on, by template.

    Memory is a few numbers a neuron, whatever the number of pairs. Pairs must come one template after the
    other (``pairs_in_template_order``). With fewer than three templates each pair is a unit of its own.
    """

    def __init__(self, pairs: Sequence[EncodedPair], component: str = NEURONS) -> None:
        templates = {pair.template for pair in pairs}
        self.unit = "template" if len(templates) >= FEWEST_UNITS else "pair"
        self.component = component
        self._running: dict[str, _Running] = {}
        self._current: dict[str, str] = {}
        self._units: BatchUnits | None = None

    def begin(self, units: BatchUnits) -> None:
        """A batch starts."""
        self._units = units

    def end(self) -> None:
        """The batch is over."""
        self._units = None

    def take(self, key: str, first: Tensor, second: Tensor, alias: str | None) -> None:
        """Add each pair's mean signed difference."""
        if self._units is None or not key.startswith(f"{self.component}_layer_"):
            return
        running = self._running.setdefault(key, _Running.zeros(first.shape[1]))
        for number, pair in enumerate(self._units.pairs):
            name = pair.template if self.unit == "template" else str(pair.index)
            if self._current.setdefault(key, name) != name:
                running.finish()
                self._current[key] = name
            start, stop = int(self._units.starts[number]), int(self._units.offsets[number + 1])
            if stop > start:
                running.total += (second[start:stop] - first[start:stop]).mean(dim=0).cpu()
            running.pairs += 1

    def result(self) -> dict[int, NeuronStatistics]:
        """Layer → statistics of its neurons."""
        found = {}
        for key, running in self._running.items():
            running.finish()
            parts = split_key(key)
            if parts is None or not running.count:
                continue
            agreeing = torch.where(running.mean >= 0, running.positive, running.negative) / running.count
            found[parts[1]] = NeuronStatistics(
                running.mean.numpy(), running.squares.numpy(), agreeing.numpy(), running.count
            )
        return found


def output_norms(view: ModelView, sites: Sequence[Site]) -> dict[int, Array]:
    """Layer → ‖d_j‖₂: how strongly each neuron's activation is written to the residual stream."""
    norms = {}
    for site in sites:
        parts = split_key(site.key)
        if parts is None or parts[0] != NEURONS:
            continue
        norms[parts[1]] = _down_weight(view, parts[1], site).detach().double().norm(dim=0).cpu().numpy()
    return norms


def _down_weight(view: ModelView, layer: int, site: Site) -> Tensor:
    """The down projection ``[hidden, neurons]``."""
    try:
        return view.mlp(layer).down_weight
    except UnsupportedModelError:
        weight = getattr(site.module, "weight", None)
        if not isinstance(site.module, torch.nn.Linear) or not isinstance(weight, Tensor):
            raise
        return weight


def rank_neurons(
    statistics: dict[int, NeuronStatistics], norms: dict[int, Array], *, unit: str, top: int | None = 50
) -> RankedNeurons:
    """All neurons ranked: significant ones first, then by the size of their effect on the residual stream.

    ``mean_difference`` is signed (second − first prompt); ``output_effect`` is it times ‖d_j‖₂; ``q_value``
    is Benjamini–Hochberg's over all neurons of all layers; ``consistency`` is the share of units with the
    mean's sign.

    Raises:
        InvalidOptionError: no statistics at all.
    """
    if not statistics:
        raise InvalidOptionError("No neuron was observed")
    layers = sorted(statistics)
    counts = min(statistics[layer].count for layer in layers)
    mean = np.concatenate([statistics[layer].mean for layer in layers])
    effect = np.concatenate([statistics[layer].mean * norms[layer] for layer in layers])
    tested = counts >= FEWEST_UNITS
    t, p, q = _tests([statistics[layer] for layer in layers]) if tested else (None, None, None)
    significant = q <= FDR if q is not None else np.zeros(len(mean), dtype=bool)
    order = np.lexsort((-np.abs(effect), ~significant))[:top]
    where = [(layer, j) for layer in layers for j in range(len(statistics[layer].mean))]
    consistency = np.concatenate([statistics[layer].consistency for layer in layers])
    ranked = (
        RankedNeuron(
            where[i][0],
            where[i][1],
            mean_difference=float(mean[i]),
            output_effect=float(effect[i]),
            t=float(t[i]) if t is not None and np.isfinite(t[i]) else None,
            p_value=float(p[i]) if p is not None else None,
            q_value=float(q[i]) if q is not None else None,
            significant=bool(significant[i]),
            consistency=float(consistency[i]),
        )
        for i in order
    )
    return RankedNeurons(
        NEURONS,
        unit,
        counts,
        tested=len(mean) if tested else 0,
        significant=int(significant.sum()),
        false_discovery_rate=FDR,
        neurons=tuple(ranked),
        warnings=tuple(_warnings(unit, counts, tested)),
    )


def _tests(statistics: Sequence[NeuronStatistics]) -> tuple[Array, Array, Array]:
    tests = [t_test(layer.mean, layer.squares, layer.count) for layer in statistics]
    t, p = (np.concatenate([test[i] for test in tests]) for i in range(2))
    return t, p, benjamini_hochberg(p)


def _warnings(unit: str, count: int, tested: bool) -> list[str]:
    if not tested:
        return [f"Only {count} pairs: the neurons are ranked by effect and not tested."]
    if unit == "pair":
        return ["Fewer than three templates: pairs were counted as independent, so p-values are too small."]
    return []
