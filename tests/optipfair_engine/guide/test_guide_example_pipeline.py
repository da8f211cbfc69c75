"""Guide, "Example 1": importance, two prunings of one model, and bias before and after."""

from __future__ import annotations

import pytest


@pytest.mark.slow
def test_guide_example_1_pipeline(run, blocks, local_data, capsys) -> None:
    (code,) = blocks("Example 1: Layer Analysis, Pruning, and Bias Analysis Pipeline")
    names = run(code)
    assert names["pruned_model_informed"].config.num_hidden_layers == 29
    assert names["pruned_model_standard"].config.num_hidden_layers == 29
    assert names["model"].config.num_hidden_layers == 32
    assert "Informed vs Standard bias difference" in capsys.readouterr().out
