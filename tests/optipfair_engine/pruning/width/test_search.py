"""Searched widths: the budget is kept, the seed repeats it, and held-out text has the last word."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

from optipfair_engine.architectures import locate
from optipfair_engine.calibration import CalibrationSet, as_calibration_set
from optipfair_engine.errors import CalibrationError, InvalidOptionError
from optipfair_engine.options.prune import PruneOptions
from optipfair_engine.plans.apply import apply_plan
from optipfair_engine.pruning import make_plan
from optipfair_engine.pruning.width import search
from optipfair_engine.pruning.width.search import Budget, Judge, Memory, search_widths
from optipfair_engine.workflow.prune.out_of_core import plan_out_of_core
from tests.tiny import tiny_llama, write_checkpoint

SIZES = dict.fromkeys(range(4), 48)
START = dict.fromkeys(range(4), 32)
BEST = {0: 46, 1: 38, 2: 28, 3: 16}
BUDGET = Budget(SIZES, least=2, unit=2)
ASKED = PruneOptions(
    pruning_percentage=40,
    compensation="least_squares",
    allocation="searched",
    search={"max_seconds": 0.2},
)


class Distance:
    """Judges by the distance from known best widths."""

    windows = ("a", "b", "c", "d")

    def __init__(self) -> None:
        self.judged = 0

    def few(self) -> int:
        return 1

    def divergence(self, widths: Mapping[int, int], windows: int) -> float:
        self.judged += 1
        assert 1 <= windows <= 4
        assert sum(widths.values()) == 128
        return float(sum((widths[layer] - best) ** 2 for layer, best in BEST.items()))


class Kept(Memory):
    """Keeps a state as a file would."""

    def __init__(self) -> None:
        self.text: str | None = None

    def recall(self) -> dict[str, Any] | None:
        return None if self.text is None else json.loads(self.text)

    def keep(self, state: Mapping[str, Any]) -> None:
        self.text = json.dumps(state)


def searched(seconds: float, seed: int = 1, memory: Memory | None = None) -> Any:
    ticks = map(float, count())
    judge: Any = Distance()
    return search_widths(
        judge, [START], BUDGET, max_seconds=seconds, seed=seed, memory=memory, clock=lambda: next(ticks)
    )


def test_neighbours_have_the_same_total_and_stay_in_their_bounds() -> None:
    draw, widths = random.Random(0), {0: 2, 1: 48, 2: 47, 3: 3}
    found = [BUDGET.neighbour(widths, draw) for _ in range(200)]
    assert all(sum(one.values()) == 100 for one in found)
    assert all(2 <= width <= 48 for one in found for width in one.values())
    assert len({tuple(one.values()) for one in found}) > 4
    assert BUDGET.neighbour({0: 48, 1: 48}, draw) == {0: 48, 1: 48}  # nothing can be moved


def test_a_search_comes_near_the_best_widths_and_a_seed_repeats_it() -> None:
    found = searched(400)
    assert found.divergence < 0.05 * found.start_divergence
    assert found == searched(400)
    assert searched(6, seed=2).widths != searched(6).widths


def test_an_interrupted_search_goes_on_as_if_it_had_not_been() -> None:
    memory = Kept()
    searched(40, memory=memory)
    left = json.loads(memory.text or "")
    found = searched(200, memory=memory)
    state = json.loads(memory.text or "")
    assert state["generation"] > left["generation"] > 0
    whole = Kept()
    searched(1000, memory=whole)  # passes through the same generations
    assert json.loads(whole.text or "")["divergence"] <= found.divergence < found.start_divergence


def tokens(samples: int) -> CalibrationSet:
    ids = torch.randint(3, 60, (samples, 24), generator=torch.Generator().manual_seed(3))
    return as_calibration_set(list(ids.split(8)))


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_llama(initializer_range=0.3, num_hidden_layers=3)


def test_the_judge_measures_the_divergence_of_the_pruned_model(model: Any) -> None:
    plan = make_plan(locate(model), ASKED.changed(allocation=None, search=None), tokens(32))
    windows = [[5, 9, 30, 7, 11], [8, 41, 3]]
    judge = Judge(locate(model), lambda _widths: plan, windows)
    pruned, total = apply_plan(model, plan), 0.0
    for window in windows:
        ids = torch.tensor(window)[None]
        with torch.no_grad():
            dense, ours = (m(ids).logits[0].log_softmax(-1) for m in (model, pruned))
        total += float((dense.exp() * (dense - ours)).sum())
    assert judge.divergence({}, 2) == pytest.approx(total / 8, rel=1e-4)
    assert judge.divergence({}, 1) != judge.divergence({}, 2)


def test_held_out_text_has_the_last_word(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "OFFSPRING", 2)
    monkeypatch.setattr(search, "SURVIVORS", 1)
    source = write_checkpoint(tmp_path / "model", model)
    here = make_plan(locate(model), ASKED, tokens(64))
    apart = plan_out_of_core(source, ASKED, tokens(64), tmp_path / "work")
    assert json.loads((tmp_path / "work" / "search.json").read_text())["state"]["generation"] > 0
    for plan in (here, apart):
        made = plan.provenance
        losses = dict(made.allocation_held_out_losses or {})
        assert losses.keys() == {"uniform", "importance", "curves", "searched"}
        assert losses[made.allocation or "uniform"] == min(losses.values())
        assert sum(map(len, plan.kept_neurons.values())) == 3 * 29
        assert (made.search_candidates or 0) > 3
        assert made.search_divergences is not None
        assert made.search_divergences["found"] <= made.search_divergences["start"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"allocation": "allocated"}, "give that, too"),
        ({"allocation": "uniform", "preset": "best"}, "give that, too"),
        ({"pruning_type": "ATTENTION", "search": None}, 'allocation "searched"|allocation can'),
        ({"fairness": {"prompt_pairs": [["a", "b"]]}}, "not with fairness"),
        ({"search": {"max_seconds": 0}}, "search_seconds must be above 0"),
    ],
)
def test_what_it_does_not_go_with_is_refused(model: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidOptionError, match=message):
        make_plan(locate(model), ASKED.changed(**changes), tokens(32))


def test_text_that_is_too_little_is_refused(model: Any) -> None:
    with pytest.raises(InvalidOptionError, match="needs calibration data"):
        make_plan(locate(model), ASKED)
    with pytest.raises(CalibrationError, match="give at least 16"):
        make_plan(locate(model), ASKED, tokens(15))
