"""Calibrated ``prune`` of a checkpoint that never comes into memory: layer by layer, tensor by tensor."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optipfair_engine.calibration.accumulators import SquaredNorm
from optipfair_engine.calibration.layerwise import capture_layerwise, open_checkpoint
from optipfair_engine.calibration.layerwise_statistics import gather_statistics_layerwise
from optipfair_engine.errors import CalibrationError, InvalidOptionError
from optipfair_engine.jsonable import write_json
from optipfair_engine.progress import Reporter, null_reporter
from optipfair_engine.pruning.planner import make_calibrated_plan, plan_by_neuron_scores
from optipfair_engine.pruning.recommended import resolve_preset
from optipfair_engine.pruning.width import target_layers
from optipfair_engine.workflow.common import METRICS_FILE, calibration_set
from optipfair_engine.workflow.streamed import prune_streamed

if TYPE_CHECKING:
    from optipfair_engine.architectures import ModelView
    from optipfair_engine.calibration import CalibrationSet
    from optipfair_engine.pruning.options import PruneOptions
    from optipfair_engine.pruning.plan import PruningPlan

ALLOCATION_FILE = "allocation.json"


def prune_out_of_core(
    source: Path,
    output: Path,
    options: PruneOptions,
    calibration_texts: Sequence[str] | CalibrationSet,
    *,
    work: Path | None = None,
    report: Reporter = null_reporter,
) -> dict[str, Any]:
    """Prune a safetensors folder by calibration, in memory for about one layer and the calibration's states.

    Args:
        source: a safetensors folder of a decoder.
        output: a folder without a model; see ``streamed.prune_streamed``.
        options: what to prune.
        calibration_texts: what is calibrated on.
        work: a folder that keeps the state. After a kill the same call goes on behind the last finished
            layer, and another size on the same calibration needs no forward pass. Unless it is given, a
            temporary folder beside ``output`` is used and removed.
        report: progress, at least one step a layer.

    Returns:
        The metrics of ``prune_checkpoint``.

    Raises:
        InvalidOptionError: what needs the whole model (``verify="logits"``, another number type, healing).
        UnsupportedModelError: the checkpoint can't be run layer by layer, or not be pruned tensor by tensor.
        EngineError: as ``prune_checkpoint``.
    """
    start = time.perf_counter()
    _refuse(options)
    calibration = _samples(source, options, calibration_texts)
    with _work_folder(work, output) as folder:
        plan = plan_out_of_core(source, options, calibration, folder, report=report)
        metrics = prune_streamed(source, output, options, plan=plan, report=report)
    facts: Any = plan.method.get("calibration", {})
    metrics |= {
        "calibration_tokens": calibration.tokens,
        "warnings": list(facts.get("warnings", ())),
        "seconds": round(time.perf_counter() - start, 3),
    }
    return write_json(output / METRICS_FILE, metrics)


def plan_out_of_core(
    source: Path,
    options: PruneOptions,
    calibration: CalibrationSet,
    work: Path,
    *,
    report: Reporter = null_reporter,
) -> PruningPlan:
    """The plan that ``planner.make_plan`` makes in memory, from a checkpoint run layer by layer."""
    options = resolve_preset(options, calibrated=True)
    view = open_checkpoint(source)
    layers = target_layers(view, options.layer_indices)
    refitted = options.compensation != "none"
    if options.prunes_neurons and (refitted or options.allocation == "allocated"):
        gathered = gather_statistics_layerwise(source, view, calibration, layers, work, report=report)
        rule = _known_rule(work)
        plan = make_calibrated_plan(view, options, calibration, gathered, rule=rule, report=report).plan
        _note_rule(work, plan)
        return plan
    if options.pruning_type == "ATTENTION" and refitted:
        gathered = gather_statistics_layerwise(
            source, view, calibration, layers, work, "o_proj", report=report
        )
        return make_calibrated_plan(view, options, None, gathered, report=report).plan
    if options.prunes_neurons:
        return _plan_by_norms(source, view, options, calibration, work, report)
    # depth looks at runs of layers: batch by batch over the mapped weights, without a state
    return make_calibrated_plan(view, options, calibration, report=report).plan


def _known_rule(work: Path) -> str | None:
    """How an earlier call for this work folder, whatever its size, found that widths are best divided."""
    file = work / ALLOCATION_FILE
    if not file.exists():
        return None
    try:
        return str(json.loads(file.read_text(encoding="utf-8"))["allocation"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CalibrationError(f"{file.name} in the work folder can't be read: {error}") from error


def _note_rule(work: Path, plan: PruningPlan) -> None:
    """Keep the outcome of a comparison for the next size: it is then had without a forward pass."""
    names = ("allocation", "allocation_held_out_losses")
    if all(name in plan.method for name in names):
        draft = work / f".{ALLOCATION_FILE}"
        write_json(draft, {name: plan.method[name] for name in names})
        draft.replace(work / ALLOCATION_FILE)


def _plan_by_norms(
    source: Path,
    view: ModelView,
    options: PruneOptions,
    calibration: CalibrationSet,
    work: Path,
    report: Reporter,
) -> PruningPlan:
    """Data-driven scores without a refit: only the norm of each input is needed."""
    layers = target_layers(view, options.layer_indices)
    captured = capture_layerwise(
        source,
        calibration.batches,
        {"down_proj": (layers, SquaredNorm)},
        work,
        view=view,
        holdout_every=None,
        report=report,
    )["down_proj"]
    norms = {layer: captured.fit[layer].result() for layer in layers}
    return plan_by_neuron_scores(view, options, calibration, x_norms=norms, report=report)


def _refuse(options: PruneOptions) -> None:
    """What can't be had without the whole model."""
    refused = {
        'verify="logits" (use "structure")': options.verify == "logits",
        f"dtype {options.dtype}": options.dtype != "auto",
        f"device {options.device}": options.device not in ("auto", "cpu"),
        "healing": options.healing_seconds is not None,
        "keep_statistics (the work folder keeps them)": options.keep_statistics,
    }
    given = [name for name, asked in refused.items() if asked]
    if given:
        raise InvalidOptionError(f"out of core, this can't be done: {', '.join(given)}")


def _samples(source: Path, options: PruneOptions, texts: Sequence[str] | CalibrationSet) -> CalibrationSet:
    from optipfair_engine.calibration import CalibrationSet
    from optipfair_engine.checkpoints import load_tokenizer

    tokenizer = None if isinstance(texts, CalibrationSet) else load_tokenizer(source)
    samples = calibration_set(
        texts,
        tokenizer,
        max_length=options.max_length,
        num_samples=options.num_samples,
        batch_size=options.batch_size,
    )
    if samples is None:
        raise CalibrationError("pruning out of core by calibration needs texts")
    return samples


@contextmanager
def _work_folder(given: Path | None, output: Path) -> Iterator[Path]:
    if given is not None:
        yield given
        return
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".optipfair-work-", dir=output.parent) as folder:
        yield Path(folder)
