"""``prune`` by weights alone, from checkpoint to checkpoint: the model never comes into memory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from optipfair_engine.errors import as_warnings
from optipfair_engine.progress import Reporter, null_reporter

if TYPE_CHECKING:
    from optipfair_engine.options.prune import PruneOptions
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

    result = stream_checkpoint(
        source,
        output,
        lambda layout: static_plan(layout, options, report=report) if plan is None else plan,
        check=options.verify != "none",
        report=report,
    )
    return _finish(source, output, options, result, route, calibrated, report)


def _finish(
    source: Path,
    output: Path,
    options: PruneOptions,
    result: StreamedCheckpoint,
    route: Route,
    calibrated: bool,
    report: Reporter,
) -> dict[str, Any]:
    """Plan, plots, model card, the check of the structure, manifest; the metrics so far."""
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
    metrics = _metrics_of(source, output, result, calibrated=calibrated, report=report)
    told = [warning["message"] for warning in metrics["warnings"]]
    write_model_card(output, result.plan.model_type, summary, origin, warnings=told)
    # before the manifest is there: its hashes of the weights were computed as they were written
    if options.verify != "none" and not result.structure_checked:
        from optipfair_engine.checkpoints.verify import verify_reload

        verify_reload(output, level=options.verify)
    files = {
        file.name: FileEntry(*result.files[file.name]) if file.name in result.files else hash_file(file)
        for file in sorted(output.iterdir())
    }
    Manifest(
        origin,
        summary,
        options.verify,
        files,
        package_versions(),
        execution=route.execution,
        execution_reason=route.reason,
        compute_dtype=computed_in(),
    ).write(output)
    report("save", 1, 1, "the checkpoint is written and checked")
    size = sum(file.stat().st_size for file in output.iterdir())
    return metrics | {"reload_check": options.verify, "output_bytes": size}


def _metrics_of(
    source: Path, output: Path, result: StreamedCheckpoint, *, calibrated: bool, report: Reporter
) -> dict[str, Any]:
    """The metrics of what was written, read off the files without a model; draws the plots, too."""
    from optipfair_engine.checkpoints.model_card import has_unequal_layers
    from optipfair_engine.plans.reduction import pruning_statistics
    from optipfair_engine.pruning.cautions import allocation_metrics, calibration_metrics, cautions_of
    from optipfair_engine.streaming import CheckpointLayout, CheckpointSource
    from optipfair_engine.workflow.prune.plots import units_per_layer, write_plots

    before, after = (CheckpointLayout(CheckpointSource(folder)) for folder in (source, output))
    metrics = pruning_statistics(result.original_parameters, after, result.plan)
    metrics |= calibration_metrics(result.plan) | allocation_metrics(result.plan)
    plain = not has_unequal_layers(output)
    metrics["loads_with_transformers"] = int(plain)
    metrics["warnings"] = as_warnings(
        cautions_of(result.plan, metrics, calibrated=calibrated, loads_with_transformers=plain)
    )
    write_plots(output, metrics, result.plan, units_per_layer(before, result.plan), report=report)
    return metrics
