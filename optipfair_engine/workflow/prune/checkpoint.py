"""``prune``: from a checkpoint to a smaller one, with its plan, model card, metrics and plots beside it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optipfair_engine.computing.asked import takes_compute_dtype
from optipfair_engine.errors import CheckpointError, InvalidOptionError, UnsupportedModelError
from optipfair_engine.jsonable import write_json
from optipfair_engine.options.prune import PruneOptions
from optipfair_engine.plans.plan import PruningPlan
from optipfair_engine.progress import Reporter, null_reporter
from optipfair_engine.pruning.sizes import NOTHING_PRUNED
from optipfair_engine.workflow.prune.streamed import can_stream, prune_streamed

if TYPE_CHECKING:
    from optipfair_engine.architectures import ModelView
    from optipfair_engine.calibration import CalibrationSet
    from optipfair_engine.checkpoints import ReloadRunner


@takes_compute_dtype
def prune_checkpoint(
    source: Path,
    output: Path,
    options: PruneOptions,
    *,
    report: Reporter = null_reporter,
    calibration_texts: Sequence[str] | CalibrationSet | None = None,
    evaluation_texts: Sequence[str] | None = None,
    plan: PruningPlan | Path | None = None,
    reload_runner: ReloadRunner | None = None,
    out_of_core: bool = False,
    work: Path | None = None,
) -> dict[str, Any]:
    """Prune a checkpoint and save the result.

    Static pruning that is not to be checked by logits streams tensors from file to file (no plots then); all
    else goes by way of a model in memory.

    Args:
        source: a model folder (safetensors, or with a GGUF file) or a GGUF file.
        output: a folder for the checkpoint, ``plan.json``, ``README.md``, manifest, plots and
            ``metrics.json``.
        options: what to prune, and how.
        report: progress; at least one step a layer.
        calibration_texts: what calibrated methods see.
        evaluation_texts: what perplexity before and after is measured on.
        plan: a plan (or the folder of one) to apply instead of making one. If ``options`` name another size,
            divisor or allocation, it is made anew without any forward pass: with a refit from its folder's
            statistics (``keep_statistics``), without one from the plan alone. Other options must be at their
            defaults or say what the plan says (``plan_options.check_beside_plan``).
        reload_runner: how the reload check computes logits in another process (``verify_reload``).
        out_of_core: never with the model in memory: calibrate layer by layer from disk, and stream.
        work: the folder of that run's state; see ``out_of_core.prune_out_of_core``.

    Returns:
        The flat metrics: the guide's ``stats`` keys, ``output_bytes``, ``seconds``, ``reload_check`` and
        others.

    Raises:
        EngineError: with a stable ``code``; nothing of the source is ever changed.
    """
    given = PruningPlan.load(plan) if isinstance(plan, Path) else plan
    if given is not None:
        given = _at_the_size_asked_for(source, options, given, plan, report)
        if calibration_texts is not None and options.healing_seconds is None:
            raise InvalidOptionError(
                "calibration text beside a plan is only for healing: leave it out to apply the plan, or "
                "leave out the plan to prune anew"
            )
    if work is not None and calibration_texts is None:
        raise InvalidOptionError("a work folder is for calibration: give calibration texts")
    if out_of_core:
        metrics = _out_of_core(
            source, output, options, calibration_texts, evaluation_texts, given, work=work, report=report
        )
        return _honest(output, metrics)
    without_text = calibration_texts is None and evaluation_texts is None
    if without_text and can_stream(source, options):
        with suppress(UnsupportedModelError):  # then in memory; there it is found out whether it can be done
            metrics = prune_streamed(source, output, options, plan=given, report=report)
            return _honest(output, metrics)
    from optipfair_engine.workflow.prune.in_memory import prune_in_memory

    metrics = prune_in_memory(
        source,
        output,
        options,
        report=report,
        calibration_texts=calibration_texts,
        evaluation_texts=evaluation_texts,
        plan=given,
        reload_runner=reload_runner,
    )
    return _honest(output, metrics)


def _out_of_core(
    source: Path,
    output: Path,
    options: PruneOptions,
    calibration_texts: Sequence[str] | CalibrationSet | None,
    evaluation_texts: Sequence[str] | None,
    plan: PruningPlan | None,
    *,
    work: Path | None,
    report: Reporter,
) -> dict[str, Any]:
    """Layer by layer with calibration, tensor by tensor without; never with the model in memory."""
    from optipfair_engine.workflow.prune.out_of_core import check_out_of_core, prune_out_of_core

    if evaluation_texts is not None:
        raise InvalidOptionError("out of core, perplexity is not measured: evaluate the result on its own")
    if calibration_texts is not None:
        return prune_out_of_core(source, output, options, calibration_texts, work=work, report=report)
    check_out_of_core(source, options)
    return prune_streamed(source, output, options, plan=plan, report=report)


def _honest(output: Path, metrics: dict[str, Any]) -> dict[str, Any]:
    """The metrics, which say so if the result is as large as the model."""
    if metrics["reduction"] > 0:
        return metrics
    warnings = [*metrics.get("warnings", ()), NOTHING_PRUNED]
    return write_json(output / "metrics.json", {**metrics, "warnings": warnings})


def _at_the_size_asked_for(
    source: Path,
    options: PruneOptions,
    plan: PruningPlan,
    folder: PruningPlan | Path | None,
    report: Reporter,
) -> PruningPlan:
    """The plan at the size that the options ask for (if any), from weights alone or from kept statistics."""
    from optipfair_engine.calibration.statistics import STATISTICS_FILE, GramStatistics
    from optipfair_engine.pruning.curves import replan
    from optipfair_engine.pruning.plan_options import asks_for_another_size, check_beside_plan

    check_beside_plan(options, plan)
    if not asks_for_another_size(options, plan):
        return plan
    kept = None
    if isinstance(folder, Path):
        beside = (folder if folder.is_dir() else folder.parent) / STATISTICS_FILE
        kept = GramStatistics.load(beside) if beside.exists() else None
    return replan(_weights_of(source, options), options, plan, kept, report=report)


def _weights_of(source: Path, options: PruneOptions) -> ModelView:
    """The model to plan on: mapped from its files where that can be done, in memory otherwise."""
    from optipfair_engine.architectures import locate
    from optipfair_engine.checkpoints import load_model
    from optipfair_engine.streaming.layerwise.run import open_checkpoint

    if options.dtype == "auto":
        with suppress(UnsupportedModelError, CheckpointError):  # loading says what is wrong, if anything is
            return open_checkpoint(source)
    return locate(load_model(source, dtype=options.dtype))
