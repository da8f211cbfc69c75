"""Scores are the formulas, in float32, and equal scores go to the lower neuron."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from optipfair_engine.architectures import locate
from optipfair_engine.errors import InvalidOptionError, NonFiniteWeightsError
from optipfair_engine.pruning.width.scores import (
    cfsp,
    hybrid_maw,
    l2,
    maw,
    neuron_scores,
    pon,
    top_indices,
    vow,
)
from tests.numbers import assert_near


@pytest.fixture
def weights() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    gate, up = torch.randn(2, 10, 6, generator=generator)
    down = torch.randn(6, 10, generator=generator)
    return gate, up, down, torch.rand(10, generator=generator)


def test_static_scores_are_the_published_formulas(weights: tuple[Tensor, ...]) -> None:
    g, u, _, _ = weights
    for i, (row, other) in enumerate(zip(g, u, strict=True)):
        assert maw(g, u)[i] == row.max() + row.min().abs() + (other.max() + other.min().abs())
        assert_near(vow(g, u)[i], row.var(correction=1) + other.var(correction=1))
        assert_near(pon(g, u)[i], row.abs().sum() * other.abs().sum())
        assert_near(l2(g, u)[i], row.pow(2).sum().sqrt() + other.pow(2).sum().sqrt())


def test_hybrid_normalises_each_range_and_multiplies_by_the_activation(weights: tuple[Tensor, ...]) -> None:
    g, u, d, x = weights

    def share(m: Tensor) -> Tensor:
        ranges = m.max(dim=1).values + m.min(dim=1).values.abs()
        return ranges / (ranges.max() + 1e-8)

    assert_near(hybrid_maw(g, u, d, x), (share(g) + share(u) + share(d.T)) * x)


def test_cfsp_ranks_as_its_additive_form_with_the_constant_terms(weights: tuple[Tensor, ...]) -> None:
    g, u, d, x = (w.double() for w in weights)
    data = (d.abs() * x / (d.abs().sum(dim=1, keepdim=True) * x.sum())).sum(dim=0)
    constants = sum((w.abs() / w.abs().sum(dim=1, keepdim=True)).sum(dim=1) for w in (g, u))
    assert_near(cfsp(d, x), data, 1e-6)
    assert torch.equal(cfsp(d, x).argsort(), (data + constants).argsort())


def test_low_precision_weights_are_scored_in_float32() -> None:
    gate = torch.full((2, 300), 1.0, dtype=torch.bfloat16)
    gate[1, 0] = 1.0078125  # one bf16 step more
    scores = pon(gate, torch.ones_like(gate))
    assert scores.dtype == torch.float32
    assert scores[1] > scores[0]  # in bf16 both sums are 300


def test_ties_go_to_the_lower_index() -> None:
    assert top_indices(torch.tensor([1.0, 2.0, 1.0, 2.0, 1.0]), 3) == (0, 1, 3)
    assert top_indices(torch.zeros(1000), 500) == tuple(range(500))


def test_ties_go_where_topk_sends_them_if_asked() -> None:
    scores = torch.tensor([1.0, 3.0, 2.0, 2.0, 2.0] * 200)
    found = top_indices(scores, 500, "topk")
    assert found == tuple(sorted(torch.topk(scores, 500).indices.tolist()))
    assert found != top_indices(scores, 500)
    assert scores[list(found)].sum() == scores[list(top_indices(scores, 500))].sum()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(("role", "name"), [("gate_proj", "gate"), ("up_proj", "up")])
def test_non_finite_weights_are_refused_by_name(llama, value: float, role: str, name: str) -> None:
    with torch.no_grad():
        getattr(llama.model.layers[2].mlp, role).weight[5, 3] = value
    with pytest.raises(NonFiniteWeightsError, match=f"model.layers.2.mlp.{role}.weight"):
        neuron_scores(locate(llama).mlp(2), "MAW")


def test_methods_that_need_or_cannot_use_activations_say_so(llama) -> None:
    mlp = locate(llama).mlp(0)
    with pytest.raises(InvalidOptionError, match="needs calibration"):
        neuron_scores(mlp, "CFSP")
    with pytest.raises(InvalidOptionError, match="can't use calibration"):
        neuron_scores(mlp, "VOW", torch.ones(100))


def test_plain_mlps_are_scored_by_their_up_rows_alone(gpt2) -> None:
    mlp = locate(gpt2).mlp(1)
    up = gpt2.transformer.h[1].mlp.c_fc.weight.T
    assert_near(neuron_scores(mlp, "L2"), up.norm(dim=1))
    x = torch.rand(128)
    down = gpt2.transformer.h[1].mlp.c_proj.weight.T
    assert_near(neuron_scores(mlp, "MAW", x), down.norm(dim=0) * x)
