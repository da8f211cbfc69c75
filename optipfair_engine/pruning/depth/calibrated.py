"""Depth pruning by calibration, with its refit."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from optipfair_engine.calibration.statistics import scored_windows
from optipfair_engine.errors import InvalidOptionError
from optipfair_engine.options import rules
from optipfair_engine.plans.plan import as_stored
from optipfair_engine.plans.provenance import Provenance
from optipfair_engine.progress import Reporter, null_reporter
from optipfair_engine.pruning.depth.choice import (
    count_to_remove,
    depth_plan,
    least_important,
    select_layers,
)
from optipfair_engine.pruning.depth.neighbour_refit import (
    greedy_perplexity_layers,
    neighbour_refits,
    neighbours,
)
from optipfair_engine.pruning.width.calibrated import Calibrated

if TYPE_CHECKING:
    from optipfair_engine.architectures import ModelView
    from optipfair_engine.calibration import CalibrationSet
    from optipfair_engine.options.prune import PruneOptions

#: What a result says of a gap that no refit bridges.
FIRST_LAYER_GOES = (
    "the layers that go from layer 0 on have no layer before them that could be refitted in their place: "
    "nothing compensates for them"
)


def calibrated_depth_plan(
    view: ModelView,
    options: PruneOptions,
    calibration: CalibrationSet | None,
    *,
    report: Reporter = null_reporter,
) -> Calibrated:
    """Plan depth pruning by importance or greedy perplexity and, if asked for, with the neighbour refit.

    Raises:
        InvalidOptionError: no calibration, or sizes out of range.
        UnsupportedModelError: the family can't lose layers, or (refit) doesn't simply add its MLP's output.
    """
    if calibration is None:
        raise InvalidOptionError(rules.DEPTH_NEEDS)
    view.check_depth(())
    removed = _select(view, options, calibration, report)
    view.check_depth(removed)
    refitted = options.compensation != "none"
    provenance = Provenance.of(
        options,
        compensation=options.compensation,
        calibration=calibration.facts(view.mlp(0).intermediate_size if refitted else 1),
        refitted_layers=tuple(neighbours(removed)) if refitted else None,
        warnings=(FIRST_LAYER_GOES,) if refitted and 0 in removed else None,
    )
    weights: dict[str, Tensor] = {}
    if refitted:
        for layer, found in neighbour_refits(view, calibration.batches, removed, report=report).items():
            mlp = view.mlp(layer)
            weights[mlp.names["down"]] = as_stored(
                found.weight, mlp.down_weight.dtype, transposed=mlp.down_transposed
            )
    return Calibrated(replace(depth_plan(view, removed, provenance), weights=weights))


def _select(
    view: ModelView, options: PruneOptions, calibration: CalibrationSet, report: Reporter
) -> tuple[int, ...]:
    method = options.layer_selection_method
    size = rules.asked_layers(options)
    if options.layer_indices is not None or not rules.selects_layers_by_text(options):
        return select_layers(view.num_layers, size, method)
    count = count_to_remove(view.num_layers, size)
    if count is None:
        raise InvalidOptionError("give the number of layers to remove, or their percentage")
    if method == "importance":
        # its import brings transformers, which planning by weights alone does without
        from optipfair_engine.pruning.depth.layer_importance import analyze_layer_importance

        scores = analyze_layer_importance(
            view.model, calibration.batches, view.layers_path, show_progress=False, report=report
        )
        return least_important(scores, count)
    return greedy_perplexity_layers(view, count, _loss(view, calibration), report=report)


def _loss(view: ModelView, calibration: CalibrationSet):  # type: ignore[no-untyped-def]
    """Mean loss over up to eight samples, the held-out ones where there are any."""
    from optipfair_engine.evaluation.perplexity import score_windows

    windows = scored_windows(calibration)

    def loss() -> float:
        with torch.no_grad():
            return score_windows(view.model, windows).mean_loss

    return loss
