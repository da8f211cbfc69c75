"""Several processes calibrate as one does: the same plan, and nobody is left behind when one of them dies."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch import Tensor

from optipfair_engine.calibration import calibration_from_texts
from optipfair_engine.calibration.text import Batch
from optipfair_engine.checkpoints import load_tokenizer
from optipfair_engine.errors import (
    EngineError,
    InvalidOptionError,
    ProcessLostError,
    TokenizerError,
)
from optipfair_engine.options.prune import PruneOptions
from optipfair_engine.plans.plan import PruningPlan
from optipfair_engine.processes import capture, rank
from optipfair_engine.processes.capture import Processes
from optipfair_engine.processes.host import _error_of
from optipfair_engine.processes.task import Task
from optipfair_engine.streaming.layerwise.run import open_checkpoint
from optipfair_engine.streaming.layerwise.statistics import gather_statistics_layerwise
from optipfair_engine.workflow import prune_checkpoint
from tests.tiny import byte_tokenizer, tiny_model, write_checkpoint

TEXTS = [f"Sentence {i} of the calibration says {i % 7} things, each {i % 5} times over." for i in range(20)]
EVALUATION = ["The text that is measured on says other things, and more of them. " * 8]
COMMON = {"pruning_percentage": 30, "verify": "structure", "max_length": 24, "batch_size": 2}
REFIT = {"neuron_selection_method": "OBS", "compensation": "least_squares"}
CUT = {"evaluation_max_length": 24, "evaluation_num_windows": 3}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "memory": ("llama", {"execution": "memory", **REFIT}),
    "memory, by score": ("llama", {"execution": "memory"}),
    "memory, experts": ("mixtral", {"execution": "memory", "pruning_type": "EXPERTS"}),
    "streamed": ("llama", {"execution": "streamed", **REFIT}),
    "streamed, heads": (
        "llama",
        {"execution": "streamed", "pruning_type": "ATTENTION", "compensation": "least_squares"}
        | {"pruning_percentage": 50},
    ),
}


@pytest.fixture(scope="module")
def source_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a family's tiny model, with a tokenizer."""
    made: dict[str, Path] = {}

    def source(family: str) -> Path:
        if family not in made:
            sizes = {"num_local_experts": 4} if family == "mixtral" else {}
            model = tiny_model(family, vocab_size=300, **sizes)
            folder = tmp_path_factory.mktemp(family) / "source"
            made[family] = write_checkpoint(folder, model, byte_tokenizer([*TEXTS, *EVALUATION]))
        return made[family]

    return source


def run_in_forks(task: Task, batches: Sequence[Batch], size: int, folder: Path, *_: Any) -> None:
    """Stands in for ``run_ranks``: ranks are forks of this process, which have everything loaded."""
    task.write(folder, batches)
    context = multiprocessing.get_context("fork")
    ranks = [context.Process(target=rank.work, args=(folder, number, size)) for number in range(size)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(60)
    assert [process.exitcode for process in ranks] == [0] * size


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> list[Task]:
    """Ranks are forks; the tasks that they were given."""
    tasks: list[Task] = []

    def run(task: Task, *arguments: Any) -> None:
        tasks.append(task)
        run_in_forks(task, *arguments)

    monkeypatch.setattr(capture, "run_ranks", run)
    return tasks


def prune(source: Path, output: Path, processes: int = 1, **asked: Any) -> tuple[PruningPlan, dict[str, Any]]:
    more = {name: asked.pop(name) for name in ("report", "announce", "work") if name in asked}
    options = PruneOptions(**{**COMMON, **CUT, **asked}, processes=processes)
    metrics = prune_checkpoint(
        source, output, options, calibration_texts=TEXTS, evaluation_texts=EVALUATION, **more
    )
    return PruningPlan.load(output), metrics


def near(a: Tensor, b: Tensor, tolerance: float) -> bool:
    return float((a.double() - b.double()).norm()) <= tolerance * float(b.double().norm())


def assert_same(found: PruningPlan, expected: PruningPlan) -> None:
    assert found.kept_neurons == expected.kept_neurons
    assert found.kept_heads == expected.kept_heads
    assert found.kept_experts == expected.kept_experts
    assert found.provenance.calibration == expected.provenance.calibration
    assert found.weights.keys() == expected.weights.keys()
    # a refit by a matrix of condition 10⁷, as random models have them, makes 1e-3 of a rounding of 1e-7
    assert all(near(found.weights[name], expected.weights[name], 5e-3) for name in expected.weights)


@pytest.mark.parametrize("case", CASES)
def test_two_processes_and_one_give_the_same_plan(
    source_of: Callable[[str], Path], forked: list[Task], tmp_path: Path, case: str
) -> None:
    family, asked = CASES[case]
    source = source_of(family)
    expected, alone = prune(source, tmp_path / "one", **asked)
    found, together = prune(source, tmp_path / "two", 2, **asked)
    assert_same(found, expected)
    assert together["perplexity_dense"] == pytest.approx(alone["perplexity_dense"], rel=1e-6)
    assert together["perplexity_pruned"] == pytest.approx(alone["perplexity_pruned"], rel=1e-4)
    assert (together["processes"], "processes" in alone) == (2, False)
    assert [task.streamed for task in forked] == [asked["execution"] == "streamed"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]


def test_statistics_of_three_processes_are_equal_to_rounding(
    source_of: Callable[[str], Path], forked: list[Task], tmp_path: Path
) -> None:
    source = source_of("llama")
    view, tokenizer = open_checkpoint(source), load_tokenizer(source)
    calibration = calibration_from_texts(TEXTS, tokenizer, max_length=24, num_samples=20, batch_size=2)
    together = Processes(3, tmp_path).capture_layerwise
    expected, found = (
        gather_statistics_layerwise(source, view, calibration, range(4), tmp_path / name, **more)
        for name, more in (("one", {}), ("three", {"capture": together}))
    )
    # of batches 0 to 9, numbers 3 and 7 have the held-out samples: the third process sees none of them
    for layer in range(4):
        assert near(found.fit[layer], expected.fit[layer], 1e-6)
        assert near(found.held[layer], expected.held[layer], 1e-6)
        assert found.importance[layer] == pytest.approx(expected.importance[layer], abs=1e-7)
    assert len(forked) == 1


def ranks_of_this_process() -> list[psutil.Process]:
    (launcher,) = psutil.Process().children()
    return [launcher, *launcher.children()]


@pytest.mark.outage  # on a busy machine the processes may have ended before one of them is killed
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_process_that_is_killed_ends_the_others_and_the_next_run_goes_on(
    source_of: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, work = source_of("llama"), tmp_path / "work"
    expected, _ = prune(source, tmp_path / "one", execution="streamed", **REFIT)
    seen: list[psutil.Process] = []

    def kill_one(stage: str, done: int, _total: int, _message: str) -> None:
        if stage == "calibrate" and done == 1:
            seen.extend(ranks_of_this_process())
            os.kill(seen[2].pid, signal.SIGKILL)

    with pytest.raises(ProcessLostError, match=r"process . of 2 was ended by SIGKILL, most often because"):
        prune(source, tmp_path / "two", 2, work=work, report=kill_one, **REFIT)
    assert len(seen) == 3
    assert not any(process.is_running() for process in seen)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "work"]
    layers = json.loads((work / "progress.json").read_text())["layers_done"]
    assert layers in (1, 2)  # the others may have come a layer further
    monkeypatch.setattr(capture, "run_ranks", run_in_forks)
    found, _ = prune(source, tmp_path / "two", 2, work=work, **REFIT)
    assert_same(found, expected)


@pytest.mark.parametrize(
    ("error", "expected", "said"),
    [
        ({"type": "TokenizerError", "code": "tokenizer_error", "message": "id 9"}, TokenizerError, "id 9"),
        ({"type": "MemoryError", "message": "no room"}, MemoryError, "no room"),
        ({"type": "OSError", "errno": 28, "message": "full"}, OSError, "full"),
        (
            {"type": "RuntimeError", "message": "secret"},
            ProcessLostError,
            "2 of 2 failed with RuntimeError",
        ),
    ],
)
def test_an_error_of_a_process_is_raised_as_its_own(
    tmp_path: Path, error: dict[str, Any], expected: type[Exception], said: str
) -> None:
    from optipfair_engine.jsonable import write_json

    write_json(rank.error_file(tmp_path, 1), {"code": None, "errno": None, **error})
    found = _error_of(tmp_path, 2, 1)
    assert type(found) is expected
    assert said in str(found)
    assert "secret" not in str(found)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"batch_size": 20}, "processes 2: the calibration has 1 batches"),
        ({"neuron_selection_method": "L2", "healing": {"max_seconds": 1}}, "share out the calibration text"),
        ({"pruning_type": "DEPTH", "pruning_percentage": None, "num_layers_to_remove": 1}, "processes"),
    ],
)
def test_what_processes_can_not_share_is_refused(
    source_of: Callable[[str], Path], tmp_path: Path, asked: dict[str, Any], said: str
) -> None:
    with pytest.raises(InvalidOptionError, match=said):
        prune(source_of("llama"), tmp_path / "output", 2, **asked)
    assert not (tmp_path / "output").exists()


def test_without_calibration_text_there_is_nothing_to_share(
    source_of: Callable[[str], Path], tmp_path: Path
) -> None:
    options = PruneOptions(pruning_percentage=30, processes=2)
    with pytest.raises(EngineError, match="give calibration"):
        prune_checkpoint(source_of("llama"), tmp_path / "output", options)


def test_a_tensor_and_its_numbers_arrive_as_they_were_sent(tmp_path: Path) -> None:
    batches = [{"input_ids": torch.tensor([[n, 2]]), "attention_mask": torch.ones(1, 2)} for n in range(12)]
    task = Task("m", "w", {"down_proj": [[1], "SquaredNorm", []]}, True, 8, "auto", windows=[[1, 2]])
    task.write(tmp_path, batches)
    found, read = Task.read(tmp_path)
    assert found == task
    assert [batch["input_ids"].tolist() for batch in read] == [[[n, 2]] for n in range(12)]
    assert type(found.factories()["down_proj"][1]()).__name__ == "SquaredNorm"
