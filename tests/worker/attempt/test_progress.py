"""A job's fraction rises over all stages, and no layer is left out."""

from __future__ import annotations

from worker.attempt.progress import MAX_EVENTS_PER_STAGE, ProgressTracker, stages_of


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
    tracker = ProgressTracker(stages_of("evaluate", {}))
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
    spec = {"steps": [{"name": "small", "kind": "prune"}, {"name": "check", "kind": "evaluate"}]}
    tracker = ProgressTracker(stages_of("pipeline", spec))
    first = tracker.update("small:verify", 1, 1, "")
    second = tracker.update("check:load", 1, 1, "")
    assert first and second and 0.3 < first.fraction < second.fraction < 0.95


def test_the_remaining_time_is_told_once_it_can_be_guessed() -> None:
    times = iter([0.0, 0.0, 10.0])
    tracker = ProgressTracker(["load", "evaluate"], clock=lambda: next(times))
    early = tracker.update("load", 0, 1, "")
    late = tracker.update("evaluate", 1, 2, "")
    assert early and early.eta_seconds is None
    assert late and late.eta_seconds is not None and 3 < late.eta_seconds < 10
