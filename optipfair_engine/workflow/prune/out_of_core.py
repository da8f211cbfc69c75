"""Calibrated ``prune`` of a checkpoint that never comes into memory: layer by layer, tensor by tensor."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from optipfair_engine.calibration.accumulators import SquaredNorm
from optipfair_engine.calibration.experts import ExpertScores
from optipfair_engine.calibration.next_token import check_predicts_next_token
from optipfair_engine.calibration.own_text import calibration_for
from optipfair_engine.computing.asked import computed_in
from optipfair_engine.errors import CalibrationError
from optipfair_engine.jsonable import write_json
from optipfair_engine.processes.capture import Processes
from optipfair_engine.progress import Announcer, Reporter, null_announcer, null_reporter
from optipfair_engine.pruning.gathering import Gatherer
from optipfair_engine.pruning.planner import make_calibrated_plan
from optipfair_engine.pruning.width.search import Memory
from optipfair_engine.streaming.layerwise.evaluation import Evaluation, score_layerwise
from optipfair_engine.streaming.layerwise.run import capture_layerwise, open_checkpoint
from optipfair_engine.streaming.layerwise.statistics import gather_statistics_layerwise
from optipfair_engine.workflow.common import calibration_set
from optipfair_engine.workflow.prune.streamed import evaluation_windows, prune_streamed

if TYPE_CHECKING:
    from torch import Tensor

    from optipfair_engine.architectures import ModelView
    from optipfair_engine.calibration import CalibrationSet
    from optipfair_engine.calibration.runner import Captured, Site
    from optipfair_engine.calibration.statistics import GramStatistics
    from optipfair_engine.checkpoints import ReloadRunner
    from optipfair_engine.options.prune import PruneOptions
    from optipfair_engine.plans.plan import PruningPlan
    from optipfair_engine.workflow.prune.route import Route

ALLOCATION_FILE = "allocation.json"
SEARCH_FILE = "search.json"


def prune_out_of_core(
    source: Path,
    output: Path,
    options: PruneOptions,
    route: Route,
    calibration_texts: Sequence[str] | CalibrationSet | None,
    *,
    evaluation_texts: Sequence[str] | None = None,
    work: Path | None = None,
    discard: bool = False,
    reload_runner: ReloadRunner | None = None,
    report: Reporter = null_reporter,
    announce: Announcer = null_announcer,
) -> dict[str, Any]:
    """Prune a safetensors folder by calibration, in memory for about one layer and the calibration's states.

    Args:
        source: a safetensors folder of a decoder.
        output: a folder without a model; see ``streamed.prune_streamed``.
        options: what to prune, with nothing that needs the whole model (``route.choose_route``).
        route: what the manifest says of the execution.
        calibration_texts: what is calibrated on; ``None`` if the model writes all of it itself.
        evaluation_texts: what perplexity before and after is measured on: its windows go through the layers
            beside the calibration's.
        work: a folder that keeps the state. After a kill the same call goes on behind the last finished
            layer, and another size on the same calibration needs no forward pass. Unless it is given, a
            temporary folder beside ``output`` is used and removed. Not for DEPTH, which keeps no state.
        discard: whether the state of another run in ``work`` is removed, and not an error.
        reload_runner: see ``prune_checkpoint``.
        report: progress, at least one step a layer.
        announce: told ``resumed`` if the run goes on.

    Returns:
        The metrics of ``prune_checkpoint`` but for its time and execution.

    Raises:
        UnsupportedModelError: the checkpoint can't be run layer by layer, or not be pruned tensor by tensor.
        EngineError: as ``prune_checkpoint``.
    """
    windows = evaluation_windows(source, options, evaluation_texts)
    with _work_folder(work, output) as folder:
        view, beside = open_checkpoint(source), None
        calibration = _samples(source, view, options, calibration_texts, report)
        if windows is not None:
            check_predicts_next_token(view.model)
            beside = Evaluation(windows)
        processes = Processes.asked_for(options, folder.parent)
        gatherer = _Layerwise(source, folder, beside, discard, announce, processes)
        plan = _plan(view, options, calibration, gatherer, report)
        if beside is not None and beside.mean_loss is None:  # layers were chosen without a pass of each
            beside.mean_loss = score_layerwise(view, beside.windows, report)
        metrics = prune_streamed(
            source,
            output,
            options,
            route,
            plan=plan,
            calibrated=True,
            windows=windows,
            dense_loss=None if beside is None else beside.mean_loss,
            reload_runner=reload_runner,
            report=report,
        )
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
    gatherer = _Layerwise(source, work, processes=Processes.asked_for(options, work.parent))
    return _plan(open_checkpoint(source), options, calibration, gatherer, report)


def _plan(
    view: ModelView,
    options: PruneOptions,
    calibration: CalibrationSet,
    gatherer: _Layerwise,
    report: Reporter,
) -> PruningPlan:
    # depth looks at runs of layers: batch by batch over the mapped weights, without a state
    # found anew where a state may be discarded: what is written must not depend on whether there was one
    rule = None if gatherer.discard else _known_rule(gatherer.work)
    made = make_calibrated_plan(view, options, calibration, gatherer=gatherer, rule=rule, report=report)
    _note_rule(gatherer.work, made.plan)
    return made.plan


class _Layerwise(Gatherer):
    """Statistics by forward passes of one layer at a time, kept in a work folder."""

    def __init__(
        self,
        source: Path,
        work: Path,
        beside: Evaluation | None = None,
        discard: bool = False,
        announce: Announcer = null_announcer,
        processes: Processes | None = None,
    ) -> None:
        self._source, self.work = source, work
        self._beside, self.discard, self._announce = beside, discard, announce
        self._capture = capture_layerwise if processes is None else processes.capture_layerwise

    def grams(
        self,
        view: ModelView,
        calibration: CalibrationSet,
        layers: Sequence[int],
        site: Site,
        report: Reporter,
    ) -> GramStatistics:
        return gather_statistics_layerwise(
            self._source,
            view,
            calibration,
            layers,
            self.work,
            site,
            capture=self._capture,
            beside=self._beside,
            discard=self.discard,
            report=report,
            announce=self._announce,
        )

    def norms(
        self, view: ModelView, calibration: CalibrationSet, layers: Sequence[int], report: Reporter
    ) -> Mapping[int, Tensor]:
        captured = self._captured(view, calibration, "down_proj", layers, SquaredNorm, report)
        return {layer: captured.fit[layer].result() for layer in layers}

    def experts(
        self, view: ModelView, calibration: CalibrationSet, layers: Sequence[int], report: Reporter
    ) -> Mapping[int, ExpertScores]:
        factory = partial(ExpertScores, view.routing.num_experts)
        return self._captured(view, calibration, "experts", layers, factory, report).fit

    def _captured(
        self,
        view: ModelView,
        calibration: CalibrationSet,
        site: Site,
        layers: Sequence[int],
        factory: Callable[[], Any],
        report: Reporter,
    ) -> Captured[Any]:
        return self._capture(
            self._source,
            calibration.batches,
            {site: (layers, factory)},
            self.work,
            view=view,
            holdout_every=None,
            beside=self._beside,
            discard=self.discard,
            report=report,
            announce=self._announce,
        )[site]

    def search_memory(self, key: str) -> Memory:
        return _SearchFile(self.work / SEARCH_FILE, key)

    def hold(self, weight: Tensor) -> Tensor:
        # a file without a name: its pages can be taken from memory, and it goes with the tensor
        with tempfile.NamedTemporaryFile(dir=self.work) as file:
            flat = torch.from_file(file.name, shared=True, size=weight.numel(), dtype=weight.dtype)
        return flat.view(weight.shape).copy_(weight)


class _SearchFile(Memory):
    """The state of a search in the work folder: of one budget, that of any other is replaced."""

    def __init__(self, file: Path, key: str) -> None:
        self._file, self._key = file, key

    def recall(self) -> dict[str, Any] | None:
        with suppress(OSError, ValueError, KeyError, TypeError):
            kept = json.loads(self._file.read_text(encoding="utf-8"))
            return dict(kept["state"]) if kept["key"] == self._key else None
        return None

    def keep(self, state: Mapping[str, Any]) -> None:
        draft = self._file.with_name(f".{self._file.name}")
        write_json(draft, {"key": self._key, "state": dict(state)})
        draft.replace(self._file)


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


def _samples(
    source: Path,
    view: ModelView,
    options: PruneOptions,
    texts: Sequence[str] | CalibrationSet | None,
    report: Reporter,
) -> CalibrationSet:
    from optipfair_engine.calibration import CalibrationSet
    from optipfair_engine.checkpoints import load_tokenizer

    cut = isinstance(texts, CalibrationSet) and not options.writes_text
    tokenizer = None if cut else load_tokenizer(source)
    samples = calibration_set(
        texts,
        tokenizer,
        max_length=options.max_length,
        num_samples=options.num_samples,
        batch_size=options.batch_size,
    )
    # its weights are mapped, and the whole of it was found to fit the memory
    samples = calibration_for(view.model, tokenizer, options, samples, report=report)
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
