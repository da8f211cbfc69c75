"""Pruning a checkpoint by way of a model in memory, with plots, perplexities and a reload check by logits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optipfair_engine.architectures import ModelView, locate
from optipfair_engine.architectures.config_edits import overrides
from optipfair_engine.calibration import CalibrationSet
from optipfair_engine.calibration.own_text import calibration_for
from optipfair_engine.calibration.statistics import STATISTICS_FILE
from optipfair_engine.checkpoints import ReloadRunner, SourceInfo, save_pruned
from optipfair_engine.computing.asked import computed_in
from optipfair_engine.errors import InvalidOptionError, as_warnings
from optipfair_engine.options.prune import PruneOptions
from optipfair_engine.plans.apply import apply_plan
from optipfair_engine.plans.plan import PruningPlan
from optipfair_engine.plans.reduction import count_parameters, pruning_statistics
from optipfair_engine.progress import Reporter, null_reporter
from optipfair_engine.pruning.cautions import cautions_of, plan_metrics
from optipfair_engine.pruning.planner import make_calibrated_plan, uses_calibration
from optipfair_engine.pruning.width.calibrated import Calibrated
from optipfair_engine.workflow.common import calibration_set, folder_bytes, load
from optipfair_engine.workflow.prune.in_processes import gatherer_for
from optipfair_engine.workflow.prune.plots import units_per_layer, write_plots
from optipfair_engine.workflow.prune.quality import heal_pruned, static_perplexity

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from optipfair_engine.evaluation.perplexity import PerplexityResult
    from optipfair_engine.pruning.gathering import Gatherer
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
    scratch: Path | None = None,
) -> dict[str, Any]:
    """:func:`prune_checkpoint` by way of a model in memory; returns its metrics, and writes all but them.

    ``scratch`` is where processes that calibrate together leave what they say: unless given, by ``output``.
    """
    if options.healing_seconds is not None and calibration_texts is None and not options.writes_text:
        raise InvalidOptionError("healing needs calibration text to distil on")
    given = (calibration_texts, options.calibration, evaluation_texts, options.fairness)
    needs_text = any(x is not None for x in given)
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
    calibration = calibration_for(model, tokenizer, options, calibration, report=report)
    view, windows = locate(model), _evaluation_windows(model, tokenizer, evaluation_texts, options)
    # healing alone may be what the text is for
    selecting = calibration if uses_calibration(options) or options.healing_seconds is None else None
    gatherer = gatherer_for(source, options, scratch or output.parent)
    made, fairness = _make_plan(view, tokenizer, options, selecting, plan, gatherer, report)
    chosen = made.plan
    units, parameters = units_per_layer(view, chosen), count_parameters(model)
    pruned, quality = _prune_and_measure(model, chosen, options, calibration, windows, report)
    metrics = pruning_statistics(parameters, locate(pruned), chosen) | quality
    metrics |= plan_metrics(chosen) | fairness
    plain = not overrides(pruned.config.get_text_config())
    metrics["loads_with_transformers"] = int(plain)
    metrics["warnings"] = as_warnings(
        cautions_of(chosen, metrics, calibrated=calibration is not None, loads_with_transformers=plain)
    )
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
        warnings=[warning["message"] for warning in metrics["warnings"]],
    )
    report("save", 1, 1, "the checkpoint is written and checked")
    return metrics | {"reload_check": manifest.reload_check, "output_bytes": folder_bytes(output)}


def _make_plan(
    view: ModelView,
    tokenizer: Any,
    options: PruneOptions,
    calibration: CalibrationSet | None,
    plan: PruningPlan | None,
    gatherer: Gatherer,
    report: Reporter,
) -> tuple[Calibrated, dict[str, Any]]:
    """The plan to apply (the given one, if any), and the metrics of fairness-aware selection."""
    if options.fairness is None:
        if plan is not None:
            return Calibrated(plan), {}
        return make_calibrated_plan(view, options, calibration, gatherer=gatherer, report=report), {}
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
    metrics |= _compared(dense, _score(pruned, windows, report), options)
    return pruned, {name: value for name, value in metrics.items() if value is not None}


def _evaluation_windows(
    model: PreTrainedModel, tokenizer: Any, texts: Sequence[str] | None, options: PruneOptions
) -> list[list[int]] | None:
    from optipfair_engine.calibration.next_token import check_predicts_next_token
    from optipfair_engine.evaluation.perplexity import text_windows

    if texts is None:
        return None
    check_predicts_next_token(model)
    return text_windows(tokenizer, list(texts), options.evaluation_max_length, options.evaluation_num_windows)


def _score(
    model: PreTrainedModel, windows: list[list[int]] | None, report: Reporter
) -> PerplexityResult | None:
    from optipfair_engine.evaluation.perplexity import score_windows

    return None if windows is None else score_windows(model, windows, report)


def _compared(
    dense: PerplexityResult | None, pruned: PerplexityResult | None, options: PruneOptions
) -> dict[str, float]:
    """Quality and speed of reading the same windows, before and after."""
    if dense is None or pruned is None:
        return {}
    return {
        "perplexity_dense": dense.perplexity,
        "perplexity_pruned": pruned.perplexity,
        "perplexity_ratio": pruned.perplexity / dense.perplexity,
        "evaluation_max_length": options.evaluation_max_length,
        "evaluation_windows": dense.windows,
        "evaluation_tokens": dense.tokens,
        "tokens_per_second_ratio": pruned.tokens_per_second / dense.tokens_per_second,
    }
