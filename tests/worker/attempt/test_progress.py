"""A job's fraction rises over all stages, no layer is left out, and the time left can be relied on."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from worker.attempt.amounts import Amounts
from worker.attempt.costs import COSTS_FILE, StageCosts
from worker.attempt.progress import MAX_EVENTS_PER_STAGE, ProgressTracker
from worker.attempt.stages import stages_of

CALIBRATED: dict[str, Any] = {
    "calibration": {"source": "local", "name": "wiki.txt", "num_samples": 128, "max_length": 512},
    "evaluation": {"source": "local", "name": "wiki.txt"},
    "verify": "logits",
}
MODEL = {"source": "local", "name": "m"}
BIAS = {"model": MODEL}
CROWS = {**BIAS, "suite": "crows.csv"}
KNOWN = Amounts(suites={"crows.csv": {"kind": "crows_pairs", "items": 1508}})
#: (stage, steps, seconds) such as a calibrated prune of a small model has; and a whole suite.
PRUNE_RUN = [
    *(("load", 1, 2.0), ("calibrate", 30, 61.0), ("select", 30, 44.0), ("evaluate", 40, 9.0)),
    *(("evaluate", 40, 9.0), ("prune", 30, 1.0), ("evaluate", 40, 8.0), ("plot", 2, 2.0), ("save", 1, 16.0)),
    ("store", 1, 0.5),
]
SUITE_RUN = [("load", 1, 3.0), ("bias", 1508, 400.0), ("save", 1, 0.5), ("store", 1, 0.1)]
#: All pairs are one batch, which reports once.
DEFAULT_BIAS_RUN = [
    *(("load", 1, 3.0), ("bias", 1, 9.0), ("bias", 1, 8.0)),
    *(("plot", 1, 4.0), ("save", 1, 2.0), ("store", 1, 0.2)),
]


class Clock:
    """A clock that is put forward by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def run(tracker: ProgressTracker, clock: Clock, stages: list[tuple[str, int, float]]) -> Iterator[Any]:
    """Report a job as it ran; gives (seconds since its start, progress) for each report that was kept."""
    for stage, steps, seconds in stages:
        tracker.update(stage, 0, steps, "")
        for done in range(1, steps + 1):
            clock.now += seconds / steps
            progress = tracker.update(stage, done, steps, "")
            if progress is not None:
                yield clock.now, progress


def etas(
    tracker: ProgressTracker, clock: Clock, stages: list[tuple[str, int, float]]
) -> Iterator[tuple[float, float | None]]:
    """(seconds since its start, what is left) of a job that is looked at each second, as people do."""
    look = 1.0
    for stage, steps, seconds in stages:
        tracker.update(stage, 0, steps, "")
        begun = clock.now
        for done in range(1, steps + 1):
            end = begun + seconds * done / steps
            while look < end:
                clock.now = look
                yield look, tracker.eta()
                look += 1.0
            clock.now = end
            tracker.update(stage, done, steps, "")


def off_by(stages: list[tuple[str, int, float]], seen: list[Any]) -> list[float]:
    """By what factor the time that is left was said wrongly, at each look from a fifth of the job on."""
    whole = sum(seconds for *_, seconds in stages)
    factors = []
    for at, eta in seen:
        left = whole - at
        if at >= whole / 5 and left > max(2.0, whole / 20):
            assert eta is not None
            factors.append(max(eta / left, left / max(eta, 0.1)))
    return factors


def test_every_layer_of_a_thirty_layer_prune_gives_a_rising_fraction() -> None:
    tracker = ProgressTracker(stages_of("prune", {}))
    reports = [("load", 1, 1), *(("prune", layer + 1, 30) for layer in range(30)), ("save", 1, 1)]
    kept = [tracker.update(stage, done, total, "") for stage, done, total in reports]
    fractions = [progress.fraction for progress in kept if progress]
    assert len(fractions) == len(reports)
    assert len(set(fractions)) >= 30
    assert fractions == sorted(fractions)
    assert fractions[0] > 0 and fractions[-1] < 1


def test_a_stage_that_comes_again_or_is_unknown_never_lowers_the_fraction() -> None:
    tracker = ProgressTracker(stages_of("evaluate", {"text": {"texts": ["x"]}}))
    high = tracker.update("evaluate", 9, 10, "")
    again = tracker.update("load", 0, 1, "baseline")
    unknown = tracker.update("something", 1, 2, "")
    assert high and again and unknown
    assert again.fraction == unknown.fraction == high.fraction


def test_many_steps_are_thinned_but_the_last_one_is_kept() -> None:
    tracker = ProgressTracker(stages_of("importance", {}))
    kept = [tracker.update("importance", done, 10_000, "") for done in range(1, 10_001)]
    assert sum(progress is not None for progress in kept) <= MAX_EVENTS_PER_STAGE + 1
    assert kept[-1] is not None


def test_a_pipelines_steps_share_the_fraction() -> None:
    steps = [
        {"name": "small", "kind": "prune", "spec": {}},
        {"name": "check", "kind": "evaluate", "spec": {"text": {"texts": ["x"]}}},
    ]
    tracker = ProgressTracker(stages_of("pipeline", {"steps": steps}))
    first = tracker.update("small:save", 1, 1, "")
    second = tracker.update("check:load", 1, 1, "")
    assert first and second and 0.2 < first.fraction < second.fraction < 0.95


def test_whoever_prunes_by_weights_alone_is_not_promised_stages_that_never_come() -> None:
    names = [stage.name for stage in stages_of("prune", {"verify": "logits"})]
    assert names == ["load", "select", "prune", "plot", "save", "store"]
    clock = Clock()
    tracker = ProgressTracker(stages_of("prune", {}), clock=clock)
    fractions = [
        progress.fraction for _, progress in run(tracker, clock, [("load", 1, 1), ("select", 30, 1)])
    ]
    assert max(after - before for before, after in pairwise(fractions)) < 0.15


@pytest.mark.parametrize(
    ("kind", "spec", "stages"),
    [("prune", CALIBRATED, PRUNE_RUN), ("bias", CROWS, SUITE_RUN), ("bias", BIAS, DEFAULT_BIAS_RUN)],
    ids=["calibrated prune", "suite", "default bias"],
)
def test_whoever_looks_each_second_sees_the_time_left_within_a_factor_of_two_from_a_fifth_on(
    tmp_path: Path, kind: str, spec: dict[str, Any], stages: list[tuple[str, int, float]]
) -> None:
    first = Clock()
    tracker = ProgressTracker(stages_of(kind, spec, KNOWN), StageCosts.of(tmp_path), clock=first)
    seen = list(etas(tracker, first, stages))
    assert max(off_by(stages, seen)) < 2  # by the guesses that every worker starts with
    StageCosts.of(tmp_path).learn(tracker.spent())

    slower = [(stage, steps, 2 * seconds) for stage, steps, seconds in stages]  # a busy machine
    second = Clock()
    tracker = ProgressTracker(stages_of(kind, spec, KNOWN), StageCosts.of(tmp_path), clock=second)
    assert max(off_by(slower, list(etas(tracker, second, slower)))) < 2


def test_while_nothing_is_reported_the_time_left_runs_down_and_never_to_nothing() -> None:
    clock = Clock()
    tracker = ProgressTracker(stages_of("prune", CALIBRATED), clock=clock)
    *_, (_, last) = run(tracker, clock, PRUNE_RUN[:-2])
    assert last.eta_seconds is not None
    tracker.update("save", 0, 1, "")
    told = []
    for _ in range(60):  # four times as long as such a stage takes
        clock.now += 1
        told.append(tracker.eta())
    assert told[0] < last.eta_seconds and told[5] < told[0]
    assert min(told) > 0 and told[-1] > 2


def test_a_first_step_that_takes_long_is_no_promise_that_the_others_are_quick() -> None:
    clock = Clock()
    tracker = ProgressTracker(stages_of("bias", {**BIAS, "prompt_pairs": [["a", "b"]] * 10}), clock=clock)
    tracker.update("load", 1, 1, "")
    tracker.update("bias", 0, 10, "")
    clock.now += 30.0  # where three seconds were expected of all
    assert tracker.eta() > 200


def test_a_larger_model_is_expected_to_take_longer_and_the_drawing_is_not() -> None:
    small, large = (
        {stage.name: stage.guess for stage in stages_of("prune", {"model": MODEL}, amounts)}
        for amounts in (Amounts(), Amounts({'{"name": "m", "source": "local"}': 1_345_150_080}))
    )
    assert large["load"] == pytest.approx(10 * small["load"])
    assert large["select"] == pytest.approx(10 * small["select"])
    assert large["plot"] == small["plot"]


def test_what_a_suite_took_says_nothing_of_a_few_pairs(tmp_path: Path) -> None:
    costs = StageCosts.of(tmp_path)
    items, pairs = (
        next(stage for stage in stages_of("bias", spec, KNOWN) if stage.name == "bias")
        for spec in (CROWS, BIAS)
    )
    assert items.guess > 50 * pairs.guess
    costs.learn({items: 4000.0})
    assert costs.cost(pairs) == pairs.guess


def test_a_baseline_without_prompts_is_asked_the_suite_of_this_project() -> None:
    compared = [s.guess for s in stages_of("bias", {**BIAS, "baseline": MODEL}) if s.name == "bias"]
    alone = [s.guess for s in stages_of("bias", BIAS) if s.name == "bias"]
    assert len(compared) == 2 * len(alone) == 4
    assert compared[0] > 20 * alone[0]


def test_what_stages_cost_is_remembered_and_a_broken_memory_is_ignored(tmp_path: Path) -> None:
    load, *_ = stages_of("analyze", {"model": MODEL})
    StageCosts.of(tmp_path).learn({load: 50.0})
    assert StageCosts.of(tmp_path).cost(load) == 50.0
    StageCosts.of(tmp_path).learn({load: 10.0})
    assert 10.0 < StageCosts.of(tmp_path).cost(load) < 50.0
    (tmp_path / COSTS_FILE).write_text("[nonsense")
    assert StageCosts.of(tmp_path).cost(load) == load.guess


def test_healing_takes_what_it_may_whatever_other_jobs_took(tmp_path: Path) -> None:
    stages = stages_of("prune", {"calibration": {"texts": ["a"]}, "healing": {"max_seconds": 900}})
    heal = next(stage for stage in stages if stage.name == "heal")
    costs = StageCosts.of(tmp_path)
    costs.learn({heal: 5.0})
    assert costs.cost(heal) == 900


def test_figures_that_are_drawn_between_pairs_do_not_end_the_pairs() -> None:
    clock = Clock()
    pairs = {"prompt_pairs": [["a", "b"], ["c", "d"]]}
    tracker = ProgressTracker(
        stages_of("bias", {**pairs, "model": {"source": "local", "name": "m"}}), clock=clock
    )
    tracker.update("load", 1, 1, "")
    tracker.update("bias", 1, 2, "")
    drawn = tracker.update("plot", 1, 2, "")
    asked = tracker.update("bias", 2, 2, "")
    assert drawn and asked and asked.fraction > drawn.fraction


def test_twice_the_text_is_expected_to_take_twice_as_long(tmp_path: Path) -> None:
    costs = StageCosts.of(tmp_path)
    texts = [{"calibration": {"source": "local", "num_samples": count}} for count in (64, 128)]
    few, many = (next(s for s in stages_of("prune", spec) if s.name == "calibrate") for spec in texts)
    costs.learn({few: 100.0})
    assert costs.cost(many) == pytest.approx(200.0)


def test_what_causes_and_what_is_said_are_stages_of_their_own() -> None:
    asked = {"patching": "neurons", "generation": {"max_new_tokens": 8}, "baseline": MODEL}
    names = [stage.name for stage in stages_of("bias", {**BIAS, **asked, "prompt_pairs": [["a", "b"]]})]
    beyond = ["estimate", "cause", "generate", "bias"]
    assert names == ["load", "bias", "load", "bias", *beyond, "plot", "save", "store"]
