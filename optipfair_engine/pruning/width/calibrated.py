"""Width pruning by Gram statistics: OBS or a score, uniform or allocated widths, and the refit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from optipfair_engine.calibration.runner import HOLDOUT_EVERY
from optipfair_engine.calibration.statistics import GramStatistics, held_out_windows
from optipfair_engine.errors import CalibrationError, InvalidOptionError, UnsupportedModelError
from optipfair_engine.options import rules
from optipfair_engine.plans.plan import PruningPlan, as_stored, new_plan
from optipfair_engine.plans.provenance import Provenance, WidthRule
from optipfair_engine.progress import Reporter, null_reporter
from optipfair_engine.pruning.allocation import curve_widths, importance_widths
from optipfair_engine.pruning.gathering import IN_MEMORY, Gatherer
from optipfair_engine.pruning.width.by_score import (
    kind_of,
    locate_mlps,
    target_layers,
    uniform_counts,
)
from optipfair_engine.pruning.width.scores import DATA_DRIVEN_METHODS, neuron_scores, removal_order
from optipfair_engine.pruning.width.search import (
    DEFAULT_SECONDS,
    UNITS_OF_A_LAYER,
    Budget,
    Judge,
    Pieces,
    search_widths,
)
from optipfair_engine.solving.obs import Elimination, eliminate
from optipfair_engine.solving.refit import RidgeScale, refit

if TYPE_CHECKING:
    from optipfair_engine.architectures import ModelView
    from optipfair_engine.architectures.view import MlpWeights
    from optipfair_engine.calibration import CalibrationSet
    from optipfair_engine.options.prune import PruneOptions

#: λ of selection and of the predicted errors; any from 1e-3 to 1e-1 chose equally good sets (measured).
SELECTION_RIDGE = 1e-2

#: D of selection and of the predicted errors: each input's own energy. Its sets were better than the median's
#: by 0.3 % of perplexity at 40 % (SmolLM2-135M); for the refit itself the median was better.
SELECTION_SCALE: RidgeScale = "coordinate"


@dataclass(frozen=True)
class Calibrated:
    """A plan, and the statistics that it came from."""

    plan: PruningPlan
    statistics: GramStatistics | None = None


@dataclass(frozen=True)
class _Layers:
    """What the choice of widths works on."""

    mlps: Mapping[int, MlpWeights]
    statistics: GramStatistics
    eliminations: Mapping[int, Elimination]
    refitted: bool
    gatherer: Gatherer
    sizes: dict[int, int] = field(init=False)

    def __post_init__(self) -> None:
        sizes = {layer: mlp.intermediate_size for layer, mlp in self.mlps.items()}
        object.__setattr__(self, "sizes", sizes)


def calibrated_width_plan(
    view: ModelView,
    options: PruneOptions,
    calibration: CalibrationSet | None,
    statistics: GramStatistics | None = None,
    *,
    eliminations: Mapping[int, Elimination] | None = None,
    gatherer: Gatherer = IN_MEMORY,
    rule: str | None = None,
    report: Reporter = null_reporter,
) -> Calibrated:
    """Plan width pruning from Gram statistics, gathered by one forward pass or given.

    ``eliminations`` are those of an earlier plan of the same statistics and method (``eliminations_of``), and
    ``rule`` is what won its comparison of ``allocated`` widths: it is then taken without another comparison.

    Raises:
        InvalidOptionError: options that contradict each other, or a target that can't be met.
        UnsupportedModelError: the family has no such MLP.
        CalibrationError: statistics that are degenerate or lack a layer.
    """
    layers = target_layers(view, options.layer_indices)
    kind = kind_of(options)
    mlps = locate_mlps(view, layers, kind)
    uniform = uniform_counts(view, options, layers, kind)
    if statistics is None:
        if calibration is None:
            raise InvalidOptionError(rules.WIDTH_NEEDS)
        statistics = gatherer.grams(view, calibration, layers, "down_proj", report)
    if eliminations is None:
        eliminations = _eliminate(mlps, statistics, options, report)
    work = _Layers(mlps, statistics, eliminations, options.compensation != "none", gatherer)
    widths, division = _choose_widths(view, options, work, uniform, calibration, rule, report)
    kept, weights, ridges = _solve(work, widths, report)
    provenance = Provenance.of(
        options,
        **division,
        data_driven=True,
        compensation=options.compensation,
        curve_ridge=SELECTION_RIDGE,
        curve_ridge_scale=SELECTION_SCALE,
        ridges=ridges,
        calibration=statistics.facts,
        layer_indices=None if options.layer_indices is None else tuple(layers),
    )
    return Calibrated(_plan(view, work, provenance, kept, weights), statistics)


def eliminations_of(plan: PruningPlan) -> dict[int, Elimination] | None:
    """The orders of removal and errors that a plan holds; ``None`` if it holds none."""
    if not plan.removal_order or not plan.curves:
        return None
    return {
        layer: Elimination(
            torch.tensor(order),
            torch.tensor(plan.curves[layer], dtype=torch.float64),
            len(order),
        )
        for layer, order in plan.removal_order.items()
    }


def eliminate_neurons(mlp: MlpWeights, gram: Tensor, order: Tensor | None = None) -> Elimination:
    """Remove an MLP's neurons in OBS's order, or in a given one ``[I]``, by the ridge of plans."""
    weight = mlp.down_weight.detach()
    return eliminate(weight, gram, SELECTION_RIDGE, order=order, scale=SELECTION_SCALE)


def _eliminate(
    mlps: Mapping[int, MlpWeights], statistics: GramStatistics, options: PruneOptions, report: Reporter
) -> dict[int, Elimination]:
    """The order of removal in each layer, with the predicted error of every width."""
    found = {}
    for done, (layer, mlp) in enumerate(mlps.items(), 1):
        gram = statistics.total(layer)
        order = None if options.neuron_selection_method == "OBS" else _score_order(mlp, gram, options)
        found[layer] = eliminate_neurons(mlp, gram, order)
        report("select", done, len(mlps), f"layer {layer}: neurons ordered")
    return found


def _score_order(mlp: MlpWeights, gram: Tensor, options: PruneOptions) -> Tensor:
    """Neurons in the order in which a score lets them go."""
    method = options.neuron_selection_method
    x_norm = gram.diagonal().double().clamp_min(0).sqrt() if method in DATA_DRIVEN_METHODS else None
    return removal_order(neuron_scores(mlp, method, x_norm))


def _choose_widths(
    view: ModelView,
    options: PruneOptions,
    work: _Layers,
    uniform: dict[int, int],
    calibration: CalibrationSet | None,
    rule: str | None,
    report: Reporter,
) -> tuple[dict[int, int], dict[str, Any]]:
    """The widths, and what the plan's provenance says of their choice."""
    total, divisor = sum(uniform.values()), options.expansion_divisor or 1
    curves = {layer: found.errors.tolist() for layer, found in work.eliminations.items()}
    if not options.unequal_widths:
        found: dict[str, Any] = {"allocation": "uniform"}
        if options.preset == "recommended" and work.refitted:
            allocated = curve_widths(work.sizes, curves, total, divisor)
            found["allocation_predicted_errors"] = _predicted_errors(work, curves, uniform, allocated)
        return uniform, found
    candidates: dict[WidthRule, dict[int, int]] = {
        "uniform": uniform,
        "importance": importance_widths(work.sizes, work.statistics.importance, total, divisor),
        "curves": curve_widths(work.sizes, curves, total, divisor),
    }
    if rule in candidates and options.allocation == "allocated":
        return candidates[rule], {"allocation": rule, "allocation_compared": False}
    windows = [] if calibration is None else held_out_windows(calibration)
    if options.allocation == "searched":
        return _searched(view, options, work, candidates, calibration, windows, report)
    if reason := _why_uncompared(view, calibration, windows):
        # without a text to compare with, the rule that won the measurements is taken
        uncompared = {"allocation": "importance", "allocation_compared": False, "warnings": (reason,)}
        return candidates["importance"], uncompared
    return _compared(view, options, work, candidates, windows, report)


def _compared(
    view: ModelView,
    options: PruneOptions,
    work: _Layers,
    candidates: Mapping[WidthRule, dict[int, int]],
    windows: Sequence[Sequence[int]],
    report: Reporter,
) -> tuple[dict[int, int], dict[str, Any]]:
    """The widths with the least loss on held-out text; of equal ones the first."""
    losses: dict[WidthRule, float] = {}
    for done, (name, widths) in enumerate(candidates.items(), 1):
        losses[name] = _held_out_loss(view, options, work, widths, windows)
        report("select", done, len(candidates), f"{name} widths: held-out loss {losses[name]:.4f}")
    best = min(losses, key=lambda name: losses[name])
    return candidates[best], {"allocation": best, "allocation_held_out_losses": losses}


def _searched(
    view: ModelView,
    options: PruneOptions,
    work: _Layers,
    candidates: Mapping[WidthRule, dict[int, int]],
    calibration: CalibrationSet | None,
    windows: Sequence[Sequence[int]],
    report: Reporter,
) -> tuple[dict[int, int], dict[str, Any]]:
    """Widths that a search found, if they beat the others on held-out text that it hasn't seen."""
    reason = _why_uncompared(view, calibration, windows)
    if reason is not None or len(windows) < 2:
        raise CalibrationError(
            reason
            or f"a search and its last word take a held-out sample each: give at least {2 * HOLDOUT_EVERY}"
        )
    blind = _blind(work)
    pieces = Pieces(
        _plan(view, work, Provenance(pruning_type=options.pruning_type), {}, {}),
        lambda layer, width: _solve_layer(blind, layer, width)[:2],
        work.sizes,
        most=6 * len(work.sizes),
    )
    divisor = options.expansion_divisor or 1
    unit = max(1, round(min(work.sizes.values()) / UNITS_OF_A_LAYER / divisor)) * divisor
    found = search_widths(
        Judge(view, pieces.plan_of, windows[::2]),
        list(candidates.values()),
        Budget(work.sizes, max(divisor, unit), unit),
        max_seconds=options.search.max_seconds if options.search else DEFAULT_SECONDS,
        seed=options.seed,
        memory=work.gatherer.search_memory(_search_key(options, candidates)),
        report=report,
    )
    best, division = _compared(
        view, options, work, {**candidates, "searched": found.widths}, windows[1::2], report
    )
    divergences = {"start": found.start_divergence, "found": found.divergence}
    division["search_candidates"] = found.judged
    division["search_divergences"] = {name: round(value, 6) for name, value in divergences.items()}
    return best, division


def _search_key(options: PruneOptions, candidates: Mapping[WidthRule, dict[int, int]]) -> str:
    """What a search depends on beside the calibration: method, refit, budget and seed."""
    words = (options.neuron_selection_method, options.compensation, options.seed, options.expansion_divisor)
    return repr((*words, *(sorted(widths.items()) for widths in candidates.values())))


def _predicted_errors(
    work: _Layers,
    curves: Mapping[int, Sequence[float]],
    uniform: Mapping[int, int],
    allocated: Mapping[int, int],
) -> dict[WidthRule, float]:
    """The layers' mean predicted error with equal widths, and with those that the curves would choose."""
    divided: dict[WidthRule, Mapping[int, int]] = {"uniform": uniform, "allocated": allocated}
    return {
        rule: round(sum(curves[i][work.sizes[i] - width] for i, width in widths.items()) / len(widths), 6)
        for rule, widths in divided.items()
    }


def _why_uncompared(
    view: ModelView, calibration: CalibrationSet | None, windows: Sequence[Sequence[int]]
) -> str | None:
    """What a result says if allocated widths can't be compared with uniform ones; ``None`` if they can."""
    from optipfair_engine.calibration.next_token import check_predicts_next_token

    said = "unequal widths, by layer importance, were not compared with equal ones: "
    if calibration is None:
        return f"{said}that takes calibration text, and there are only kept statistics"
    if not windows:
        return f"{said}that takes at least {HOLDOUT_EVERY} calibration samples, one of which is held out"
    try:
        check_predicts_next_token(view.model)
    except UnsupportedModelError as error:
        return f"{said}{error}"
    return None


def _held_out_loss(
    view: ModelView,
    options: PruneOptions,
    work: _Layers,
    widths: Mapping[int, int],
    windows: Sequence[Sequence[int]],
) -> float:
    """Mean loss on held-out text with these widths, refitted without having seen it."""
    from optipfair_engine.evaluation.perplexity import score_windows
    from optipfair_engine.plans.apply import narrowed_in_passing

    kept, weights, _ = _solve(_blind(work), widths)
    plan = _plan(view, work, Provenance(pruning_type=options.pruning_type), kept, weights)
    with narrowed_in_passing(view, plan):
        return round(score_windows(view.model, windows).mean_loss, 6)


def _blind(work: _Layers) -> _Layers:
    """The same, for refits that have not seen what is held out."""
    return replace(work, statistics=GramStatistics(work.statistics.site, work.statistics.fit))


def _solve(
    work: _Layers, widths: Mapping[int, int], report: Reporter = null_reporter
) -> tuple[dict[int, tuple[int, ...]], dict[str, Tensor], dict[int, float]]:
    """Kept neurons, refitted down weights by state-dict name, and the ridges, of the layers that shrink."""
    kept: dict[int, tuple[int, ...]] = {}
    weights: dict[str, Tensor] = {}
    ridges: dict[int, float] = {}
    for done, (layer, width) in enumerate(widths.items(), 1):
        report("select", done, len(widths), f"layer {layer}: {width} of {work.sizes[layer]} neurons stay")
        if width >= work.sizes[layer]:
            continue
        kept[layer], some, ridge = _solve_layer(work, layer, width)
        weights |= some
        if ridge is not None:
            ridges[layer] = ridge
    return kept, weights, ridges


def _solve_layer(
    work: _Layers, layer: int, width: int
) -> tuple[tuple[int, ...], dict[str, Tensor], float | None]:
    """The same of one layer that shrinks to ``width`` neurons; without a refit there is neither."""
    mlp, indices = work.mlps[layer], work.eliminations[layer].kept(width)
    kept = tuple(indices.tolist())
    if not work.refitted:
        return kept, {}, None
    found = refit(mlp.down_weight.detach(), *work.statistics.pair(layer), indices)
    stored = as_stored(found.weight, mlp.down_weight.dtype, transposed=mlp.down_transposed)
    return kept, {mlp.names["down"]: work.gatherer.hold(stored)}, found.ridge


def _plan(
    view: ModelView,
    work: _Layers,
    provenance: Provenance,
    kept: dict[int, tuple[int, ...]],
    weights: dict[str, Tensor],
) -> PruningPlan:
    return new_plan(
        view,
        provenance,
        kept_neurons=kept,
        weights=weights,
        curves={layer: _short(found.errors.tolist()) for layer, found in work.eliminations.items()},
        removal_order={layer: tuple(found.order.tolist()) for layer, found in work.eliminations.items()},
    )


def _short(values: Sequence[float]) -> tuple[float, ...]:
    """Six digits: more than the prediction is good for, and a third of the file."""
    return tuple(float(f"{value:.6g}") for value in values)
