"""Applying a plan to a checkpoint on disk: from shards to shards, through a few buffers of fixed size."""

from __future__ import annotations

import fnmatch
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from optipfair_engine.computing.bits import bits_are_finite
from optipfair_engine.errors import NonFiniteWeightsError
from optipfair_engine.progress import Reporter, null_reporter
from optipfair_engine.streaming.ahead import Ahead, Piece
from optipfair_engine.streaming.config import plain_config
from optipfair_engine.streaming.edits import TensorEdit, plan_edits
from optipfair_engine.streaming.gather import chunks
from optipfair_engine.streaming.layout import CheckpointLayout
from optipfair_engine.streaming.shards import (
    INDEX_NAME,
    Background,
    Buffers,
    HashedFile,
    Shard,
    assign_shards,
    shard_index,
)
from optipfair_engine.streaming.source import DTYPE_NAMES, CheckpointSource
from optipfair_engine.streaming.told import check_written, tensors_are_told

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from optipfair_engine.plans.plan import PruningPlan

#: What transformers cuts checkpoints into, and ``save_pruned`` too.
MAX_SHARD_BYTES = 5_000_000_000

#: Files that belong to a model besides its weights and config.
_COMPANIONS = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model",
    "generation_config.json", "chat_template.*", "*processor_config.json", "LICENSE*", "NOTICE*",
)  # fmt: skip
#: The sub-folder for all chat templates but the default one.
_TEMPLATES = "additional_chat_templates"


@dataclass(frozen=True)
class StreamedCheckpoint:
    """What was written.

    Attributes:
        plan: what was applied.
        files: weight file → (size, SHA-256), computed while it was written.
        original_parameters: of the source; tied ones count once.
        structure_checked: whether what was written was compared with what the family's data tell of it.
    """

    plan: PruningPlan
    files: dict[str, tuple[int, str]]
    original_parameters: int
    structure_checked: bool


def apply_plan_to_checkpoint(
    source: Path | str,
    output: Path | str,
    plan: PruningPlan,
    *,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    report: Reporter = null_reporter,
) -> StreamedCheckpoint:
    """Write the checkpoint that a plan leaves: the tensors that ``apply_plan`` gives, byte by byte.

    Every source tensor is searched for NaN and infinity on the way. Weights, ``config.json`` and the
    tokenizer's and generation's files are written; a manifest, a model card and the atomic publication are
    the caller's.

    Args:
        source: a safetensors folder.
        output: a folder, made if need be; files of the same names are replaced.
        plan: what stays.
        max_shard_bytes: cut the weights into files of at most this size.
        report: progress, stage "prune", one step a layer.

    Raises:
        CheckpointError: ``source`` can't be read.
        PlanError: the plan doesn't fit it.
        UnsupportedModelError: it can't be done tensor by tensor; in memory it can, perhaps.
        NonFiniteWeightsError: names the tensor.
    """
    return stream_checkpoint(source, output, lambda _: plan, max_shard_bytes=max_shard_bytes, report=report)


def stream_checkpoint(
    source: Path | str,
    output: Path | str,
    choose: Callable[[CheckpointLayout], PruningPlan],
    *,
    check: bool = True,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    report: Reporter = null_reporter,
) -> StreamedCheckpoint:
    """:func:`apply_plan_to_checkpoint` with a plan yet to be chosen, for example by ``planning.static_plan``.

    Where the plan changes no more than sizes that all layers share, the config follows from the source's; the
    tensors are compared with what the family's data tell of such configs. For all else, and for families
    whose tensors aren't told, transformers is imported, and the model's structure built, in a thread
    meanwhile. ``check=False`` compares nothing if the config follows from the source's. After a failure
    nothing that was written is left.
    """
    folder, target = Path(source), Path(output)
    layout = CheckpointLayout(CheckpointSource(folder))
    with (
        ExitStack() as failed,
        ThreadPoolExecutor(1, thread_name_prefix="optipfair-structure") as aside,
    ):
        told = tensors_are_told(layout.source)
        building = aside.submit(_build, folder) if check and not told else None
        plan = choose(layout)
        edits = plan_edits(layout, plan)
        shards = assign_shards(edits, max_shard_bytes)
        target.mkdir(parents=True, exist_ok=True)
        for name in ("config.json", INDEX_NAME, *(shard.name for shard in shards)):
            failed.callback((target / name).unlink, missing_ok=True)
        config = plain_config(layout, plan) if building is None else None
        if config is not None:
            text = json.dumps(config, indent=2, sort_keys=True)
            (target / "config.json").write_text(text + "\n", encoding="utf-8")
            files = _write_weights(layout, edits, shards, target, report)
            if check:
                check_written(target, edits)
        else:
            building = building or aside.submit(_build, folder)
            shrinking = aside.submit(_shrink, building, layout, plan, target)
            files = _write_weights(layout, edits, shards, target, report)
            shrinking.result()
        failed.pop_all()
    _copy_companions(folder, target)
    checked = check and config is not None
    return StreamedCheckpoint(plan, files, layout.count_parameters(), checked)


def _build(folder: Path) -> PreTrainedModel:
    from optipfair_engine.streaming.structure import build_on_meta

    return build_on_meta(folder)


def _shrink(
    building: Future[PreTrainedModel], layout: CheckpointLayout, plan: PruningPlan, target: Path
) -> None:
    from optipfair_engine.streaming.structure import write_config

    write_config(building.result(), layout, plan, target)


def _write_weights(
    layout: CheckpointLayout,
    edits: Sequence[TensorEdit],
    shards: Sequence[Shard],
    target: Path,
    report: Reporter,
) -> dict[str, tuple[int, str]]:
    buffers, progress = Buffers(), _LayerProgress(layout, edits, report)
    results = {}
    # two threads: a search of a large tensor must not hold up the hashing, nor that the writing
    with Background() as hashing, Background() as checking:
        for shard in shards:
            file = HashedFile(target / shard.name, hashing)
            results[shard.name] = _write_shard(layout.source, file, shard, buffers, checking, progress)
        _check_dropped(layout.source, edits, checking)
    if len(shards) > 1:
        (target / INDEX_NAME).write_text(shard_index(shards), encoding="utf-8")
    return {name: result.result() for name, result in results.items()}


def _write_shard(
    source: CheckpointSource,
    file: HashedFile,
    shard: Shard,
    buffers: Buffers,
    checking: Background,
    progress: _LayerProgress,
) -> Future[tuple[int, str]]:
    with file, Ahead(_pieces(source, shard, buffers, checking), buffers) as pieces:
        file.write(shard.header())
        for edit, chunk in pieces:
            if chunk is None:
                progress.wrote(edit)
            else:
                file.write(chunk.data, partial(buffers.give_back, chunk.buffer))
        return file.result()


def _pieces(
    source: CheckpointSource, shard: Shard, buffers: Buffers, checking: Background
) -> Iterator[Piece]:
    """The chunks of a shard's tensors, and a mark behind each tensor."""
    for edit in shard.edits:
        checking.give(partial(_require_finite, source, edit.original))
        for chunk in chunks(source, edit, buffers):
            yield edit, chunk
        yield edit, None


def _check_dropped(source: CheckpointSource, edits: Sequence[TensorEdit], background: Background) -> None:
    """Tensors that go are searched for NaN too, as a model in memory is."""
    for name in sorted(set(source.tensors) - {edit.original for edit in edits}):
        background.give(partial(_require_finite, source, name))


def _require_finite(source: CheckpointSource, name: str) -> None:
    if not bits_are_finite(source.bits(name), DTYPE_NAMES[source.info(name).dtype]):
        raise NonFiniteWeightsError(f"{name} holds NaN or infinite values")


class _LayerProgress:
    """Reports a layer when the last of its tensors is written."""

    def __init__(self, layout: CheckpointLayout, edits: Sequence[TensorEdit], report: Reporter) -> None:
        self._left = Counter(edit.layer for edit in edits if edit.layer is not None)
        self._total, self._report = layout.num_layers, report
        self._done = self._total - len(self._left)

    def wrote(self, edit: TensorEdit) -> None:
        """Note that a tensor is written."""
        if edit.layer is None:
            return
        self._left[edit.layer] -= 1
        if self._left[edit.layer] == 0:
            self._done += 1
            self._report("prune", self._done, self._total, f"layer {edit.layer} done")


def _copy_companions(source: Path, target: Path) -> None:
    for file in sorted(source.iterdir()):
        if file.is_file() and any(fnmatch.fnmatch(file.name, pattern) for pattern in _COMPANIONS):
            shutil.copyfile(file, target / file.name)
    _fold_templates(source, target)


def _fold_templates(source: Path, target: Path) -> None:
    """Put several chat templates into tokenizer_config.json, from which they load too: no sub-folders."""
    templates = {file.stem: file for file in sorted((source / _TEMPLATES).glob("*.jinja"))}
    if not templates:
        return
    default, config = target / "chat_template.jinja", target / "tokenizer_config.json"
    if default.is_file():
        templates["default"] = default
    stated = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    stated["chat_template"] = [
        {"name": name, "template": file.read_text(encoding="utf-8")} for name, file in templates.items()
    ]
    config.write_text(json.dumps(stated, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    default.unlink(missing_ok=True)
