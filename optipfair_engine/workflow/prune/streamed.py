"""``prune`` by weights alone, from checkpoint to checkpoint: the model never comes into memory."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optipfair_engine.errors import as_warnings
from optipfair_engine.progress import Reporter, null_reporter

if TYPE_CHECKING:
    from optipfair_engine.checkpoints import ReloadRunner
    from optipfair_engine.options.prune import PruneOptions
    from optipfair_engine.options.words import ComputeDtype, VerifyLevel
    from optipfair_engine.plans.plan import PruningPlan
    from optipfair_engine.streaming import StreamedCheckpoint
    from optipfair_engine.workflow.prune.route import Route


def prune_streamed(
    source: Path,
    output: Path,
    options: PruneOptions,
    route: Route,
    *,
    plan: PruningPlan | None = None,
    windows: Sequence[Sequence[int]] | None = None,
    dense_loss: float | None = None,
    reload_runner: ReloadRunner | None = None,
    calibrated: bool = False,
    report: Reporter = null_reporter,
) -> dict[str, Any]:
    """Prune a safetensors folder in a few hundred megabytes of memory, whatever its size.

    Args:
        source: a safetensors folder.
        output: a folder without a model, for the checkpoint, ``plan.json``, ``README.md``, plots and
            manifest.
        options: what to prune, by weights alone unless there is a plan.
        route: what the manifest says of the execution.
        plan: a plan to apply instead of making one.
        windows: of token ids that perplexity before and after is measured on, layer by layer.
        dense_loss: the mean loss of the source on them, if it was measured on the way.
        reload_runner: see ``prune_checkpoint``.
        calibrated: whether there was calibration text.
        report: progress, at least one step a layer.

    Returns:
        The metrics of ``prune_checkpoint`` but for its time and execution.

    Raises:
        UnsupportedModelError: the checkpoint can't be pruned tensor by tensor (perhaps in memory); nothing
            that was written is left.
        EngineError: as ``prune_checkpoint``.
    """
    from optipfair_engine.pruning.static_plan import static_plan
    from optipfair_engine.streaming.apply import stream_checkpoint

    if windows is not None and dense_loss is None:
        dense_loss = _mean_loss(source, windows, report)
    # what draws takes as long to import as half a gigabyte to write, and writing leaves a processor free
    with ThreadPoolExecutor(1, thread_name_prefix="optipfair-figures") as aside:
        aside.submit(import_module, "optipfair_engine.figures")
        result = stream_checkpoint(
            source,
            output,
            lambda layout: static_plan(layout, options, report=report) if plan is None else plan,
            check=route.verify != "none",
            report=report,
        )
    measured: dict[str, float] = {}
    if windows is not None and dense_loss is not None:
        measured = _compared(dense_loss, _mean_loss(output, windows, report), windows, options)
    return _finish(
        source, output, options, result, route, measured, reload_runner, calibrated=calibrated, report=report
    )


def evaluation_windows(
    source: Path, options: PruneOptions, texts: Sequence[str] | None
) -> list[list[int]] | None:
    """The windows of token ids that perplexity is measured on; ``None`` without texts."""
    if texts is None:
        return None
    from optipfair_engine.checkpoints import load_tokenizer
    from optipfair_engine.evaluation.perplexity import text_windows

    length, count = options.evaluation_max_length, options.evaluation_num_windows
    return text_windows(load_tokenizer(source), list(texts), length, count)


def _mean_loss(folder: Path, windows: Sequence[Sequence[int]], report: Reporter) -> float:
    from optipfair_engine.streaming.layerwise.evaluation import score_layerwise
    from optipfair_engine.streaming.layerwise.run import open_checkpoint

    return score_layerwise(open_checkpoint(folder), windows, report)


def _compared(
    dense_loss: float, pruned_loss: float, windows: Sequence[Sequence[int]], options: PruneOptions
) -> dict[str, float]:
    """Quality on the same windows, before and after, under the names of a prune in memory."""
    from optipfair_engine.calibration.next_token import perplexity_of

    dense, pruned = perplexity_of(dense_loss), perplexity_of(pruned_loss)
    return {
        "perplexity_dense": dense,
        "perplexity_pruned": pruned,
        "perplexity_ratio": pruned / dense,
        "evaluation_max_length": options.evaluation_max_length,
        "evaluation_windows": len(windows),
        "evaluation_tokens": sum(len(window) - 1 for window in windows),
    }


def _finish(
    source: Path,
    output: Path,
    options: PruneOptions,
    result: StreamedCheckpoint,
    route: Route,
    measured: dict[str, float],
    reload_runner: ReloadRunner | None,
    *,
    calibrated: bool,
    report: Reporter,
) -> dict[str, Any]:
    """Plan, plots, model card, the check of the result, manifest; the metrics so far."""
    from optipfair_engine.checkpoints.manifest import (
        FileEntry,
        Manifest,
        SourceInfo,
        hash_file,
        package_versions,
    )
    from optipfair_engine.checkpoints.model_card import plan_summary, write_model_card
    from optipfair_engine.computing.asked import computed_in

    report("save", 0, 1, "writing plan, model card and manifest")
    # hashing the source, as the in-memory path does, would take as long as all the rest
    origin, summary = SourceInfo.stated(source), plan_summary(result.plan)
    result.plan.save(output)
    perplexities = {name: value for name, value in measured.items() if name.startswith("perplexity_")}
    metrics = _metrics_of(source, output, result, measured, calibrated=calibrated, report=report)
    told = [warning["message"] for warning in metrics["warnings"]]
    write_model_card(output, result.plan.model_type, summary, origin, perplexities, warnings=told)
    # before the manifest is there: its hashes of the weights were computed as they were written
    _check(output, route.verify, reload_runner, structure_checked=result.structure_checked)
    files = {
        file.name: FileEntry(*result.files[file.name]) if file.name in result.files else hash_file(file)
        for file in sorted(output.iterdir())
    }
    Manifest(
        origin,
        summary,
        route.verify,
        files,
        package_versions(),
        perplexities,
        execution=route.execution,
        execution_reason=_said(route, options),
        compute_dtype=computed_in(),
    ).write(output)
    report("save", 1, 1, "the checkpoint is written and checked")
    size = sum(file.stat().st_size for file in output.iterdir())
    return metrics | {"reload_check": route.verify, "output_bytes": size}


def _metrics_of(
    source: Path,
    output: Path,
    result: StreamedCheckpoint,
    measured: dict[str, float],
    *,
    calibrated: bool,
    report: Reporter,
) -> dict[str, Any]:
    """The metrics of what was written, read off the files without a model; draws the plots, too."""
    from optipfair_engine.checkpoints.model_card import has_unequal_layers
    from optipfair_engine.plans.reduction import pruning_statistics
    from optipfair_engine.pruning.cautions import cautions_of, plan_metrics
    from optipfair_engine.streaming import CheckpointLayout, CheckpointSource
    from optipfair_engine.workflow.prune.plots import units_per_layer, write_plots

    before, after = (CheckpointLayout(CheckpointSource(folder)) for folder in (source, output))
    metrics = pruning_statistics(result.original_parameters, after, result.plan)
    metrics |= plan_metrics(result.plan) | measured
    plain = not has_unequal_layers(output)
    metrics["loads_with_transformers"] = int(plain)
    metrics["warnings"] = as_warnings(
        cautions_of(result.plan, metrics, calibrated=calibrated, loads_with_transformers=plain)
    )
    write_plots(output, metrics, result.plan, units_per_layer(before, result.plan), report=report)
    return metrics


def _said(route: Route, options: PruneOptions) -> str:
    """Why it was carried out so, and why it is checked less than was asked for, if it is."""
    if route.verify == options.verify:
        return route.reason
    return f"{route.reason}; the pruned model doesn't fit the memory, so its {route.verify} is checked"


def _check(output: Path, level: VerifyLevel, runner: ReloadRunner | None, *, structure_checked: bool) -> None:
    """Check what was written; its logits against those of the mapped files, which no loading has touched."""
    if level == "none" or (level == "structure" and structure_checked):
        return
    from optipfair_engine.checkpoints.verify import check_tokens, verify_reload

    if level == "structure":
        verify_reload(output, level=level)
        return
    from optipfair_engine.checkpoints.reload import model_logits
    from optipfair_engine.computing.number_type import chosen_dtype, name_of
    from optipfair_engine.streaming import CheckpointLayout, CheckpointSource
    from optipfair_engine.streaming.layerwise.model import mapped_model

    model = mapped_model(CheckpointLayout(CheckpointSource(output)))
    tokens = check_tokens(model.config.get_text_config().vocab_size)
    computed: ComputeDtype = "float32" if name_of(chosen_dtype(model)) == "float32" else "checkpoint"
    verify_reload(
        output,
        level=level,
        reference_logits=model_logits(model, tokens, computed),
        token_ids=tokens,
        runner=runner,
        attention=model.config._attn_implementation,
        compute_dtype=computed,
    )
