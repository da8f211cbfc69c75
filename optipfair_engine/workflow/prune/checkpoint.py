"""``prune``: from a checkpoint to a smaller one, with its plan, model card, metrics and plots beside it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optipfair_engine.computing.asked import takes_compute_dtype
from optipfair_engine.errors import CheckpointError, InvalidOptionError, UnsupportedModelError
from optipfair_engine.options.errors import engines_errors
from optipfair_engine.options.presets import with_own_text
from optipfair_engine.options.prune import PruneOptions
from optipfair_engine.options.rules import check_processes
from optipfair_engine.plans.plan import PruningPlan
from optipfair_engine.progress import Announcer, Reporter, null_announcer, null_reporter
from optipfair_engine.workflow.export import check_export, export_beside
from optipfair_engine.workflow.foreseen import (
    facts_of,
    refuse_long_windows,
    refuse_speechless,
    refuse_unprunable,
)
from optipfair_engine.workflow.metrics import write_metrics
from optipfair_engine.workflow.prune.route import Case, Route, choose_route, spec_of
from optipfair_engine.workflow.prune.streamed import evaluation_windows, prune_streamed

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
    memory_limit: int | None = None,
    work: Path | None = None,
    state: Path | None = None,
    announce: Announcer = null_announcer,
) -> dict[str, Any]:
    """Prune a checkpoint and save the result.

    Args:
        source: a model folder (safetensors, or with a GGUF file) or a GGUF file.
        output: a folder for the checkpoint, ``plan.json``, ``README.md``, manifest, ``metrics.json``,
            ``model.gguf`` (``export``) and plots.
        options: what to prune, and how.
        report: progress; at least one step a layer.
        calibration_texts: what calibrated methods see. Without any, a preset calibrates on text that the
            model writes itself, as ``options.calibration`` does.
        evaluation_texts: what perplexity before and after is measured on.
        plan: a plan (or the folder of one) to apply instead of making one. If ``options`` name another size,
            divisor or allocation, it is made anew without any forward pass: with a refit from its folder's
            statistics (``keep_statistics``), without one from the plan alone. Other options must be at their
            defaults or say what the plan says (``plan_options.check_beside_plan``).
        reload_runner: how the reload check computes logits in another process (``verify_reload``).
        memory_limit: bytes that the prune may take; ``execution="auto"`` then streams what is estimated to
            take more (``route.choose_route``).
        work: the folder of a streamed run's state, which asks for such a run; see
            ``out_of_core.prune_out_of_core``.
        state: a folder for the same that asks for nothing: it is used if the run is a calibrated streamed
            one, and what it holds of another run is removed.
        announce: told ``execution`` once that is decided, and ``resumed`` if a streamed run goes on.

    Returns:
        The flat metrics: the guide's ``stats`` keys, ``output_bytes``, ``seconds``, ``reload_check``,
        ``execution``, ``execution_reason``, ``loads_with_transformers`` (0 or 1), ``warnings`` (a list of
        ``code`` and ``message``) and others.

    Raises:
        EngineError: with a stable ``code``; nothing of the source is ever changed.
    """
    start = time.perf_counter()
    given = PruningPlan.load(plan) if isinstance(plan, Path) else plan
    texts = calibration_texts is not None
    options = with_own_text(options, texts=texts, planned=given is not None)
    calibrated = texts or options.writes_text
    if given is not None:
        _check_plan(options, given, calibrated=calibrated)
    with engines_errors():
        check_processes(options, calibrated=calibrated, planned=given is not None)
    _refuse_impossible(source, options, calibration_texts, evaluation_texts, planned=given is not None)
    check_export(source, options, calibrated=calibrated)
    case = Case.of(
        source,
        options,
        calibration=calibrated,
        evaluation=evaluation_texts is not None,
        work=work is not None,
        memory_limit=memory_limit,
    )
    route = choose_route(options, case)
    if given is not None:
        given = _at_the_size_asked_for(source, options, given, plan, report)
    run = _Run(
        source,
        output,
        options,
        calibration_texts,
        evaluation_texts,
        given,
        reload_runner,
        work,
        state,
        report,
        announce,
    )
    try:
        metrics = run.along(route)
    except UnsupportedModelError as error:
        if options.execution != "auto" or work is not None or route.execution == "memory":
            raise
        # in memory it can be done, perhaps; if not, that is found out there
        route = choose_route(options, replace(case, obstacle=str(error)))
        metrics = run.along(route)
    exported = export_beside(source, output, options, report=report)
    metrics |= exported | {"output_bytes": metrics["output_bytes"] + exported.get("gguf_bytes", 0)}
    metrics |= {"processes": options.processes} if options.processes > 1 else {}
    return write_metrics(output, _completed(metrics, route, time.perf_counter() - start))


@dataclass(frozen=True)
class _Run:
    """A prune that can be carried out by any route."""

    source: Path
    output: Path
    options: PruneOptions
    calibration_texts: Sequence[str] | CalibrationSet | None
    evaluation_texts: Sequence[str] | None
    plan: PruningPlan | None
    reload_runner: ReloadRunner | None
    work: Path | None
    state: Path | None
    report: Reporter
    announce: Announcer

    def along(self, route: Route) -> dict[str, Any]:
        """Carry it out; the metrics that are known when the files are written."""
        self.announce("execution", {"execution": route.execution, "reason": route.reason})
        if route.execution == "memory":
            return self._in_memory(route)
        if route.layerwise:
            from optipfair_engine.workflow.prune.out_of_core import prune_out_of_core

            return prune_out_of_core(
                self.source,
                self.output,
                self.options,
                route,
                self.calibration_texts,
                evaluation_texts=self.evaluation_texts,
                work=self.work or self.state,
                discard=self.work is None and self.state is not None,
                reload_runner=self.reload_runner,
                report=self.report,
                announce=self.announce,
            )
        return prune_streamed(
            self.source,
            self.output,
            self.options,
            route,
            plan=self.plan,
            windows=evaluation_windows(self.source, self.options, self.evaluation_texts),
            reload_runner=self.reload_runner,
            report=self.report,
        )

    def _in_memory(self, route: Route) -> dict[str, Any]:
        from optipfair_engine.workflow.prune.in_memory import prune_in_memory

        return prune_in_memory(
            self.source,
            self.output,
            self.options,
            route,
            report=self.report,
            calibration_texts=self.calibration_texts,
            evaluation_texts=self.evaluation_texts,
            plan=self.plan,
            reload_runner=self.reload_runner,
            scratch=(self.state or self.output).parent,
        )


def _completed(metrics: dict[str, Any], route: Route, seconds: float) -> dict[str, Any]:
    """The metrics with how they came about."""
    return {
        **metrics,
        "execution": route.execution,
        "execution_reason": route.reason,
        "seconds": round(seconds, 3),
    }


def _check_plan(options: PruneOptions, plan: PruningPlan, *, calibrated: bool) -> None:
    """Refuse what contradicts a plan, or would not be read beside one."""
    from optipfair_engine.pruning.plan_options import check_beside_plan

    check_beside_plan(options, plan)
    if calibrated and options.healing_seconds is None:
        raise InvalidOptionError(
            "calibration text beside a plan is only for healing: leave it out to apply the plan, or "
            "leave out the plan to prune anew"
        )


def _refuse_impossible(
    source: Path,
    options: PruneOptions,
    calibration_texts: Sequence[str] | CalibrationSet | None,
    evaluation_texts: Sequence[str] | None,
    *,
    planned: bool,
) -> None:
    """Refuse what the model's headers rule out; a plan is checked against the model itself."""
    facts, calibrated = facts_of(source), calibration_texts is not None or options.writes_text
    if options.writes_text:
        refuse_speechless(facts)
    if not planned:
        refuse_unprunable(facts, options, spec_of(options, calibrated, evaluation_texts is not None))
    # samples that are cut already have a length of their own
    cut = getattr(calibration_texts, "max_length", options.max_length)
    lengths = {
        "max_length": cut if calibrated else None,
        "evaluation_max_length": None if evaluation_texts is None else options.evaluation_max_length,
    }
    refuse_long_windows(facts, lengths)


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
    from optipfair_engine.pruning.plan_options import asks_for_another_size

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
