"""Calibrated ``prune`` of a checkpoint that never comes into memory: layer by layer, tensor by tensor."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from optipfair_engine.calibration.accumulators import SquaredNorm
from optipfair_engine.computing.asked import computed_in
from optipfair_engine.errors import CalibrationError
from optipfair_engine.jsonable import write_json
from optipfair_engine.progress import Reporter, null_reporter
from optipfair_engine.pruning.gathering import Gatherer
from optipfair_engine.pruning.planner import make_calibrated_plan
from optipfair_engine.streaming.layerwise.run import capture_layerwise, open_checkpoint
from optipfair_engine.streaming.layerwise.statistics import gather_statistics_layerwise
from optipfair_engine.workflow.common import calibration_set
from optipfair_engine.workflow.prune.streamed import prune_streamed

if TYPE_CHECKING:
    from torch import Tensor

    from optipfair_engine.architectures import ModelView
    from optipfair_engine.calibration import CalibrationSet
    from optipfair_engine.calibration.runner import Site
    from optipfair_engine.calibration.statistics import GramStatistics
    from optipfair_engine.options.prune import PruneOptions
    from optipfair_engine.plans.plan import PruningPlan
    from optipfair_engine.workflow.prune.route import Route

ALLOCATION_FILE = "allocation.json"


def prune_out_of_core(
    source: Path,
    output: Path,
    options: PruneOptions,
    route: Route,
    calibration_texts: Sequence[str] | CalibrationSet,
    *,
    work: Path | None = None,
    report: Reporter = null_reporter,
) -> dict[str, Any]:
    """Prune a safetensors folder by calibration, in memory for about one layer and the calibration's states.

    Args:
        source: a safetensors folder of a decoder.
        output: a folder without a model; see ``streamed.prune_streamed``.
        options: what to prune, with nothing that needs the whole model (``route.choose_route``).
        route: what the manifest says of the execution.
        calibration_texts: what is calibrated on.
        work: a folder that keeps the state. After a kill the same call goes on behind the last finished
            layer, and another size on the same calibration needs no forward pass. Unless it is given, a
            temporary folder beside ``output`` is used and removed. Not for DEPTH, which keeps no state.
        report: progress, at least one step a layer.

    Returns:
        The metrics of ``prune_checkpoint`` but for its time and execution.

    Raises:
        UnsupportedModelError: the checkpoint can't be run layer by layer, or not be pruned tensor by tensor.
        EngineError: as ``prune_checkpoint``.
    """
    calibration = _samples(source, options, calibration_texts)
    with _work_folder(work, output) as folder:
        plan = plan_out_of_core(source, options, calibration, folder, report=report)
        metrics = prune_streamed(source, output, options, route, plan=plan, calibrated=True, report=report)
    return metrics | {"calibration_tokens": calibration.tokens, "compute_dtype": computed_in()}


def plan_out_of_core(
    source: Path,
    options: PruneOptions,
    calibration: CalibrationSet,
    work: Path,
    *,
    report: Reporter = null_reporter,
) -> PruningPlan:
    """The plan that ``planner.make_plan`` makes in memory, from a checkpoint run layer by layer."""
    # depth looks at runs of layers: batch by batch over the mapped weights, without a state
    gatherer = _Layerwise(source, work)
    view, rule = open_checkpoint(source), _known_rule(work)
    made = make_calibrated_plan(view, options, calibration, gatherer=gatherer, rule=rule, report=report)
    _note_rule(work, made.plan)
    return made.plan


class _Layerwise(Gatherer):
    """Statistics by forward passes of one layer at a time, kept in a work folder."""

    def __init__(self, source: Path, work: Path) -> None:
        self._source, self._work = source, work

    def grams(
        self,
        view: ModelView,
        calibration: CalibrationSet,
        layers: Sequence[int],
        site: Site,
        report: Reporter,
    ) -> GramStatistics:
        return gather_statistics_layerwise(
            self._source, view, calibration, layers, self._work, site, report=report
        )

    def norms(
        self, view: ModelView, calibration: CalibrationSet, layers: Sequence[int], report: Reporter
    ) -> Mapping[int, Tensor]:
        captured = capture_layerwise(
            self._source,
            calibration.batches,
            {"down_proj": (layers, SquaredNorm)},
            self._work,
            view=view,
            holdout_every=None,
            report=report,
        )["down_proj"]
        return {layer: captured.fit[layer].result() for layer in layers}

    def hold(self, weight: Tensor) -> Tensor:
        # a file without a name: its pages can be taken from memory, and it goes with the tensor
        with tempfile.NamedTemporaryFile(dir=self._work) as file:
            flat = torch.from_file(file.name, shared=True, size=weight.numel(), dtype=weight.dtype)
        return flat.view(weight.shape).copy_(weight)


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
    made = plan.provenance
    if made.allocation_held_out_losses is not None:
        draft = work / f".{ALLOCATION_FILE}"
        losses = dict(made.allocation_held_out_losses)
        write_json(draft, {"allocation": made.allocation, "allocation_held_out_losses": losses})
        draft.replace(work / ALLOCATION_FILE)


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
