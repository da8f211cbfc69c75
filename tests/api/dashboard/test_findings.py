"""What the charts of a job say, and where they draw it."""

from __future__ import annotations

import pytest

from api.dashboard import charts, findings
from tests.api.dashboard.samples import LAYERS, WIDTH, bias_summary, importance_metrics, plan


def test_kept_widths_are_drawn_over_what_there_was() -> None:
    kept, curve = findings.plan_charts(plan())
    assert kept.title == "Layers keep between 76 and 84 neurons"
    behind, front = kept.bars[:LAYERS], kept.bars[LAYERS:]
    for before, after, layer in zip(behind, front, range(LAYERS), strict=True):
        stays = WIDTH - 12 - 2 * (layer % 5)
        assert after.height / before.height == pytest.approx(stays / WIDTH, rel=1e-3)
    removed = 1 - sum(WIDTH - 12 - 2 * (layer % 5) for layer in range(LAYERS)) / (WIDTH * LAYERS)
    assert curve.marks[0].x == pytest.approx(100 * removed)


def test_a_plan_of_layers_names_those_that_go() -> None:
    chart = findings.plan_charts({"num_layers": 6, "removed_layers": [4, 5]})[0]
    assert chart.title == "2 of 6 layers are gone"
    assert [bar.style for bar in chart.bars] == ["one"] * 4 + ["two"] * 2


def test_kept_experts_are_drawn_over_all_that_there_were() -> None:
    kept = {str(layer): [0, 2, 3] for layer in range(2)}
    orders = {str(layer): [1, 0, 2, 3] for layer in range(2)}
    (chart,) = findings.plan_charts({"kept_experts": kept, "removal_order": orders})
    assert chart.title == "Every layer keeps 3 experts"
    assert chart.rows == [("0", "3", "4"), ("1", "3", "4")]


def test_bias_has_its_intervals_and_names_the_layer_that_differs_most() -> None:
    chart = findings.bias_charts(bias_summary())[0]
    layers = bias_summary()["activations"]["layers"]
    top = max(range(LAYERS), key=lambda layer: layers[f"mlp_output_layer_{layer}"]["value"])
    assert chart.title == f"MLP output: the prompts differ most in layer {top}"
    for bar in chart.bars:
        assert bar.low is not None
        assert bar.high is not None
        assert bar.high < bar.y < bar.low  # pixels count downwards


def test_the_layers_of_least_use_stand_out() -> None:
    scores = importance_metrics()["importance"]
    chart = next(findings.importance({"importance": scores}))
    least = min(scores, key=scores.__getitem__)
    assert chart.bars[int(least)].style == "two"
    assert chart.title.startswith(f"Layer {least} changes least")


@pytest.mark.parametrize("values", [[0.0], [3.0, -2.0], [1e-9], [1e12, 5.0], [0.1, 0.2, float("nan")]])
def test_scales_hold_all_values_and_zero_in_few_steps(values: list[float]) -> None:
    scaled = charts.scale(values)
    assert scaled.low <= min(0.0, *[v for v in values if v == v], 0.0)
    assert scaled.high >= max([v for v in values if v == v])
    assert 2 <= len(scaled.steps) <= 7
    assert scaled(scaled.low) == charts.HEIGHT
    assert scaled(scaled.high) == 0
