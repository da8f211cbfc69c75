"""``prune_model``: the guide's one call for every kind of pruning of a model in memory."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from typing import Any, Final, Literal, TypeVar, cast, get_args, overload

from transformers import PreTrainedModel

from optipfair_engine.architectures import locate
from optipfair_engine.calibration import as_calibration_set
from optipfair_engine.calibration.own_text import calibration_for
from optipfair_engine.checkpoints import check_finite
from optipfair_engine.errors import InvalidOptionError, as_warnings
from optipfair_engine.notebooks import Result
from optipfair_engine.options.base import about
from optipfair_engine.options.calibration import Cut, OwnText
from optipfair_engine.options.presets import with_own_text
from optipfair_engine.options.prune import Prune, PruneOptions
from optipfair_engine.options.words import LayerSelectionMethod, NeuronSelectionMethod, PruningType
from optipfair_engine.plans.apply import apply_plan
from optipfair_engine.plans.reduction import count_parameters, pruning_statistics
from optipfair_engine.progress import Reporter
from optipfair_engine.progress.bars import progress_bars
from optipfair_engine.pruning.cautions import (
    OWN_TEXT_NOTICE,
    calibration_metrics,
    plan_cautions,
    reconstruction_metrics,
)
from optipfair_engine.pruning.planner import make_plan

M = TypeVar("M", bound=PreTrainedModel)


class _DefaultPercentage(float):
    """The guide's default of 10 %, told apart from a 10 that the caller wrote."""


#: What a data loader has settled, and text that the model writes has not.
_OF_OWN_TEXT: Final = (*Cut.model_fields, "seed")

_DEFAULT_PERCENTAGE: Final = _DefaultPercentage(10)


@overload
def prune_model(
    model: M, *args: Any, return_stats: Literal[True], **kwargs: Any
) -> tuple[M, dict[str, Any]]: ...
@overload
def prune_model(model: M, *args: Any, return_stats: Literal[False] = ..., **kwargs: Any) -> M: ...


def prune_model(  # type: ignore[misc]  # the overloads only say what return_stats changes
    model: M,
    pruning_type: str = "MLP_GLU",
    neuron_selection_method: str = "MAW",
    pruning_percentage: float | None = _DEFAULT_PERCENTAGE,
    expansion_rate: float | None = None,
    expansion_divisor: int | None = None,
    dataloader: Iterable[Any] | None = None,
    show_progress: bool = True,
    return_stats: bool = False,
    num_layers_to_remove: int | None = None,
    layer_indices: Iterable[object] | None = None,
    depth_pruning_percentage: float | None = None,
    layer_selection_method: LayerSelectionMethod = "last",
    *,
    inplace: bool = False,
    layers_path: str | None = None,
    report: Reporter | None = None,
    tokenizer: Any = None,
    **options: Any,
) -> M | tuple[M, dict[str, Any]]:
    """Prune a model: neurons (``MLP_GLU``, ``MLP``), layers (``DEPTH``) or heads (``ATTENTION``).

    Args:
        model: a transformers model; it stays as it is unless ``inplace``.
        pruning_type: ``MLP_GLU`` for gated MLPs, ``MLP`` for plain ones, ``DEPTH`` or ``ATTENTION``.
        neuron_selection_method: MAW (= PPM), VOW, PON, L2; CFSP with a dataloader; OBS with a dataloader and
            ``compensation="least_squares"``.
        pruning_percentage: percent of each layer's neurons (or attention units) that go, 0 ≤ p < 100.
        expansion_rate: percent of the hidden size that the intermediate size shall be, instead of a
            percentage.
        expansion_divisor: round the intermediate size to the nearest multiple of 32, 64, 128 or 256.
        dataloader: calibration batches (dicts, tuples or tensors); makes MAW data-driven, feeds the refit.
        show_progress: show progress bars.
        return_stats: return ``(model, stats)``.
        num_layers_to_remove: for DEPTH.
        layer_indices: DEPTH: the layers to remove; otherwise the only layers to prune.
        depth_pruning_percentage: for DEPTH, percent of the layers that go.
        layer_selection_method: for DEPTH: last, first or custom (= ``layer_indices``).
        inplace: change ``model`` itself.
        layers_path: where the layers are, for models with several stacks (``"decoder.block"``).
        report: told about progress instead of the progress bars.
        tokenizer: lets text that the model writes itself begin in several ways, and so be of several kinds.
        **options: other fields of ``options.prune.Prune`` that choose what goes: ``preset``,
            ``compensation``, ``allocation``, ``target_parameters`` or ``target_bytes`` (instead of a
            percentage), ``attention_unit``, ``tie_break``, ``reconstruction={"max_seconds": 60}``,
            ``calibration={"source": "model"}`` (instead of a dataloader) and ``mix_self`` (beside one). Of
            text that the model writes itself, also ``num_samples``, ``max_length``, ``batch_size`` and
            ``seed``. A preset without a dataloader calibrates on such text; ``best`` heals checkpoints, and
            nothing here.

    Returns:
        The pruned model, or ``(pruned model, stats)``; see ``statistics.pruning_statistics`` for the keys.

    Raises:
        ValueError: an option out of range or a contradiction (``InvalidOptionError``), a family that lacks
            what is needed (``UnsupportedModelError``), NaN weights (``NonFiniteWeightsError``).
        TypeError: ``layer_indices`` that aren't a list of integers, or no such option.
    """
    _check_names(options, alone=dataloader is None)
    sizes = (expansion_rate, options.get("target_parameters"), options.get("target_bytes"))
    rate = next((size for size in sizes if size is not None), None)
    guide: dict[str, Any] = {
        "pruning_type": _checked_type(pruning_type),
        "neuron_selection_method": _checked_method(neuron_selection_method),
        "pruning_percentage": _percentage(pruning_percentage, rate, expansion_divisor, pruning_type),
        "expansion_rate": expansion_rate,
        "expansion_divisor": expansion_divisor,
        "layer_indices": layer_indices,
        "num_layers_to_remove": num_layers_to_remove,
        "depth_pruning_percentage": depth_pruning_percentage,
        "layer_selection_method": layer_selection_method,
    }
    chosen = with_own_text(PruneOptions(**guide, **options), texts=dataloader is not None)
    view = locate(model, layers_path)
    check_finite(model)
    calibration = None if dataloader is None else as_calibration_set(dataloader)
    if chosen.calibration is not None and chosen.preset != "guide" and "calibration" not in options:
        warnings.warn(OWN_TEXT_NOTICE, stacklevel=2)
    with progress_bars(show_progress) if report is None else nullcontext(report) as tell:
        calibration = calibration_for(model, tokenizer, chosen, calibration, report=tell)
        plan = make_plan(view, chosen, calibration, report=tell)
        original = count_parameters(model)
        pruned = apply_plan(model, plan, inplace=inplace, layers_path=view.layers_path, report=tell)
    if not return_stats:
        return pruned
    facts = calibration_metrics(plan) | reconstruction_metrics(plan)
    # the guide's calls are by weights alone and say nothing of it; a preset is calibrated
    if cautions := plan_cautions(plan, calibrated=True):
        facts["warnings"] = as_warnings(cautions)
    return pruned, Result(pruning_statistics(original, locate(pruned, view.layers_path), plan) | facts)


def _percentage(
    percentage: float | None, rate: float | None, divisor: int | None, pruning_type: str
) -> float | None:
    """The percentage that was asked for; the default yields to ``expansion_rate``, and DEPTH has none."""
    if percentage is _DEFAULT_PERCENTAGE:
        return None if rate is not None or pruning_type == "DEPTH" else float(_DEFAULT_PERCENTAGE)
    if percentage is None and rate is None and pruning_type != "DEPTH":
        alone = "expansion_divisor cannot be used alone. " if divisor is not None else ""
        raise InvalidOptionError(f"{alone}Please provide either pruning_percentage or expansion_rate.")
    return percentage


def _check_names(options: Mapping[str, Any], *, alone: bool) -> None:
    """Refuse what is no option, or one of checkpoints, which nothing here would read.

    ``alone``: there is no data loader.
    """
    fields = {**Prune.model_fields, **OwnText.model_fields}
    read = {name for name, field in fields.items() if about(field).in_memory}
    writes = options.get("mix_self") is not None or options.get("calibration") is not None
    writes = writes or (alone and options.get("preset", "guide") != "guide")
    for name in options:
        own = name in _OF_OWN_TEXT
        if name in read or (own and writes):
            continue
        hint = ' without calibration={"source": "model"} or mix_self' if own else ""
        raise TypeError(f"prune_model() got an unexpected keyword argument {name!r}{hint}")


def _checked_type(pruning_type: str) -> PruningType:
    if pruning_type not in get_args(PruningType):
        choices = list(get_args(PruningType))
        raise InvalidOptionError(f"Unsupported pruning type: {pruning_type}. Choose from {choices}.")
    return cast("PruningType", pruning_type)


def _checked_method(method: str) -> NeuronSelectionMethod:
    if method not in get_args(NeuronSelectionMethod):
        choices = list(get_args(NeuronSelectionMethod))
        raise InvalidOptionError(f"Invalid neuron selection method: {method}. Choose from {choices}.")
    return cast("NeuronSelectionMethod", method)
