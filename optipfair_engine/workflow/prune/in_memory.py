"""Pruning a checkpoint by way of a model in memory, with plots, perplexities and a reload check by logits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optipfair_engine.architectures import ModelView, locate
from optipfair_engine.calibration import CalibrationSet
from optipfair_engine.calibration.statistics import STATISTICS_FILE
from optipfair_engine.checkpoints import ReloadRunner, SourceInfo, save_pruned
from optipfair_engine.computing.asked import computed_in
from optipfair_engine.errors import InvalidOptionError, UnsupportedModelError
from optipfair_engine.options.prune import PruneOptions
from optipfair_engine.plans.apply import apply_plan
from optipfair_engine.plans.plan import PruningPlan
from optipfair_engine.plans.reduction import count_parameters, pruning_statistics
from optipfair_engine.progress import Reporter, null_reporter
from optipfair_engine.pruning.planner import make_calibrated_plan, uses_calibration
from optipfair_engine.pruning.recommended import calibration_metrics
from optipfair_engine.pruning.width.calibrated import Calibrated
from optipfair_engine.workflow.common import calibration_set, folder_bytes, load
from optipfair_engine.workflow.prune.quality import heal_pruned, static_perplexity

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from optipfair_engine.evaluation.perplexity import PerplexityResult
    from optipfair_engine.workflow.prune.route import Route


def prune_in_memory(
    source: Path,
    output: Path,
    options: PruneOptions,
    route: Route,
    *,
    report: Reporter = null_reporter,
    calibration_texts: Sequence[str] | CalibrationSet | None = None,
    evaluation_texts: Sequence[str] | None = None,
    plan: PruningPlan | None = None,
    reload_runner: ReloadRunner | None = None,
) -> dict[str, Any]:
    """:func:`prune_checkpoint` by way of a model in memory; returns its metrics, and writes all but them."""
    if options.healing_seconds is not None and calibration_texts is None:
        raise InvalidOptionError("healing needs calibration text to distil on")
    needs_text = any(x is not None for x in (calibration_texts, evaluation_texts, options.fairness))
    loaded = load(
        source, dtype=options.dtype, device=options.device, needs_tokenizer=needs_text, report=report
    )
    model, tokenizer = loaded.model, loaded.tokenizer
    calibration = calibration_set(
        calibration_texts,
        tokenizer,
        max_length=options.max_length,
        num_samples=options.num_samples,
        batch_size=options.batch_size,
    )
    view, windows = locate(model), _evaluation_windows(model, tokenizer, evaluation_texts, options.max_length)
    # healing alone may be what the text is for
    selecting = calibration if uses_calibration(options) or options.healing_seconds is None else None
    made, fairness = _make_plan(view, tokenizer, options, selecting, plan, report)
    chosen = made.plan
    units, parameters = units_per_layer(view, chosen), count_parameters(model)
    pruned, quality = _prune_and_measure(model, chosen, options, calibration, windows, report)
    metrics = pruning_statistics(parameters, locate(pruned), chosen) | quality
    metrics |= calibration_metrics(chosen, options, calibrated=calibration is not None)
    metrics |= fairness
    if computed_in() is not None:
        metrics["compute_dtype"] = computed_in()
    output.mkdir(parents=True, exist_ok=True)
    write_plots(output, metrics, chosen, units, report=report)
    if options.keep_statistics and made.statistics is not None:
        made.statistics.save(output / STATISTICS_FILE)
    report("save", 0, 1, "writing the checkpoint")
    info = SourceInfo.of(source)
    manifest = save_pruned(
        pruned,
        output,
        tokenizer=tokenizer,
        plan=chosen,
        source=info,
        verify=options.verify,
        runner=reload_runner,
        measured={name: value for name, value in quality.items() if name.startswith("perplexity_")},
        execution=route.execution,
        execution_reason=route.reason,
    )
    report("save", 1, 1, "the checkpoint is written and checked")
    return metrics | {"reload_check": manifest.reload_check, "output_bytes": folder_bytes(output)}


def _make_plan(
    view: ModelView,
    tokenizer: Any,
    options: PruneOptions,
    calibration: CalibrationSet | None,
    plan: PruningPlan | None,
    report: Reporter,
) -> tuple[Calibrated, dict[str, Any]]:
    """The plan to apply (the given one, if any), and the metrics of fairness-aware selection."""
    if options.fairness is None:
        made = Calibrated(plan) if plan else make_calibrated_plan(view, options, calibration, report=report)
        return made, {}
    from optipfair_engine.pruning.fairness import fair_plan_of, flat_metrics

    fair = fair_plan_of(view.model, tokenizer, options, calibration, report=report)
    return fair.calibrated, flat_metrics(fair.report)


def _prune_and_measure(
    model: PreTrainedModel,
    plan: PruningPlan,
    options: PruneOptions,
    calibration: CalibrationSet | None,
    windows: list[list[int]] | None,
    report: Reporter,
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The pruned (and healed) model, and perplexities where there is text to measure them on."""
    metrics: dict[str, Any] = {}
    dense = _score(model, windows, report)
    if windows is not None and plan.provenance.calibration is not None:
        metrics["perplexity_static_same_size"] = static_perplexity(model, plan, windows, report)
    # healing distils from the dense model, so that one has to stay
    pruned = apply_plan(model, plan, inplace=options.healing_seconds is None, report=report)
    if options.healing_seconds is not None and calibration is not None:
        before = _score(pruned, windows, report)
        metrics["perplexity_before_healing"] = None if before is None else before.perplexity
        metrics |= heal_pruned(pruned, model, options, calibration, report)
    metrics |= _compared(dense, _score(pruned, windows, report))
    return pruned, {name: value for name, value in metrics.items() if value is not None}


def _evaluation_windows(
    model: PreTrainedModel, tokenizer: Any, texts: Sequence[str] | None, max_length: int
) -> list[list[int]] | None:
    from optipfair_engine.calibration.next_token import check_predicts_next_token
    from optipfair_engine.evaluation.perplexity import DEFAULT_WINDOWS, text_windows

    if texts is None:
        return None
    check_predicts_next_token(model)
    return text_windows(tokenizer, list(texts), max_length, DEFAULT_WINDOWS)


def _score(
    model: PreTrainedModel, windows: list[list[int]] | None, report: Reporter
) -> PerplexityResult | None:
    from optipfair_engine.evaluation.perplexity import score_windows

    return None if windows is None else score_windows(model, windows, report)


def _compared(dense: PerplexityResult | None, pruned: PerplexityResult | None) -> dict[str, float]:
    """Quality and speed of reading the same windows, before and after."""
    if dense is None or pruned is None:
        return {}
    return {
        "perplexity_dense": dense.perplexity,
        "perplexity_pruned": pruned.perplexity,
        "perplexity_ratio": pruned.perplexity / dense.perplexity,
        "tokens_per_second_ratio": pruned.tokens_per_second / dense.tokens_per_second,
    }


def units_per_layer(view: ModelView, plan: PruningPlan) -> list[int]:
    """What the plot of kept units counts, layer by layer: neurons or query heads (0 in layers without)."""
    counts = []
    for layer in range(view.num_layers):
        try:
            size = view.attention(layer).num_heads if plan.kept_heads else view.mlp(layer).intermediate_size
        except (
            UnsupportedModelError
        ):  # a mixture of experts, or T5, beside layers that the plan doesn't touch
            size = 0
        counts.append(size)
    return counts


def write_plots(
    output: Path,
    stats: dict[str, Any],
    plan: PruningPlan,
    original_units: list[int],
    *,
    report: Reporter,
) -> None:
    """``parameters.png``, and ``kept_….png`` of neurons, heads or layers, and ``error_curves.png``."""
    from optipfair_engine.figures import plot_curves, plot_kept, plot_layers, plot_parameters

    plot_parameters(output / "parameters.png", stats["original_parameters"], stats["pruned_parameters"])
    report("plot", 1, 2, "parameters.png")
    if plan.removed_layers:
        name = plot_layers(output / "kept_layers.png", plan.num_layers, plan.removed_layers).name
    elif plan.kept_heads:
        kept = [
            len(plan.kept_heads[i].query) if i in plan.kept_heads else n for i, n in enumerate(original_units)
        ]
        name = plot_kept(output / "kept_heads.png", kept, original_units, unit="query heads").name
    else:
        kept = [len(plan.kept_neurons.get(i, range(n))) for i, n in enumerate(original_units)]
        name = plot_kept(output / "kept_neurons.png", kept, original_units, unit="intermediate neurons").name
    if plan.curves:
        name = plot_curves(output / "error_curves.png", plan.curves, plan.kept_neurons).name
    report("plot", 2, 2, name)
