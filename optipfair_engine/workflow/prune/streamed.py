"""``prune`` by weights alone, from checkpoint to checkpoint: the model never comes into memory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    report: Reporter = null_reporter,
) -> dict[str, Any]:
    """Prune a safetensors folder in a few hundred megabytes of memory, whatever its size.

    Args:
        source: a safetensors folder.
        output: a folder without a model, for the checkpoint, ``plan.json``, ``README.md`` and manifest. No
            plots are drawn: that would take longer than the pruning.
        options: what to prune, by weights alone unless there is a plan.
        route: what the manifest says of the execution.
        plan: a plan to apply instead of making one.
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
    return _finish(source, output, options, result, route, report)


def _finish(
    source: Path,
    output: Path,
    options: PruneOptions,
    result: StreamedCheckpoint,
    route: Route,
    report: Reporter,
) -> dict[str, Any]:
    """Plan, model card, the check of the structure, manifest; the metrics so far."""
    from optipfair_engine.checkpoints.manifest import (
        FileEntry,
        Manifest,
        SourceInfo,
        hash_file,
        package_versions,
    )
    from optipfair_engine.checkpoints.model_card import plan_summary, write_model_card
    from optipfair_engine.computing.asked import computed_in
    from optipfair_engine.plans.reduction import pruning_statistics
    from optipfair_engine.pruning.recommended import calibration_metrics
    from optipfair_engine.streaming import CheckpointLayout, CheckpointSource

    report("save", 0, 1, "writing plan, model card and manifest")
    # hashing the source, as the in-memory path does, would take as long as all the rest
    origin, summary = SourceInfo.stated(source), plan_summary(result.plan)
    result.plan.save(output)
    write_model_card(output, result.plan.model_type, summary, origin)
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
    # read off the files, without a model
    written = CheckpointLayout(CheckpointSource(output))
    said = calibration_metrics(result.plan, options, calibrated=False)
    return (
        pruning_statistics(result.original_parameters, written, result.plan)
        | said
        | {
            "reload_check": options.verify,
            "output_bytes": sum(file.stat().st_size for file in output.iterdir()),
        }
    )
