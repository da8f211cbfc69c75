"""Guide, "Evaluating Pruned Models"."""

from __future__ import annotations

import pytest

from optipfair_engine import prune_model


def test_guide_evaluating_pruned_models(run, blocks, model, capsys) -> None:
    (code,) = blocks("Evaluating Pruned Models")
    small = prune_model(model, pruning_type="DEPTH", num_layers_to_remove=30, show_progress=False)
    pruned = prune_model(small, pruning_type="DEPTH", num_layers_to_remove=1, show_progress=False)
    names = run(code, model=small, original_model=small, pruned_model=pruned)
    timing, comparison = names["timing"], names["comparison"]
    assert timing["generated_tokens"] == 50 and timing["num_runs"] == 5
    assert timing["min_time"] <= timing["median_time"] <= timing["max_time"]
    assert timing["tokens_per_second"] * timing["avg_time"] == pytest.approx(50)
    assert comparison["num_prompts"] == 2
    ratio = comparison["avg_original_time"] / comparison["avg_pruned_time"]
    assert comparison["speedup"] == ratio
    out = capsys.readouterr().out
    assert "Tokens per second:" in out and "Speedup:" in out
