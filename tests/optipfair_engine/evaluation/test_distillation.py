"""Healing moves the student towards the teacher within its limits, and touches nothing else."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from transformers import LlamaForCausalLM

from optipfair_engine.errors import InvalidOptionError
from optipfair_engine.evaluation.healing import LEARNING_RATE, default_learning_rate, heal
from tests.numbers import assert_near
from tests.optipfair_engine.evaluation.conftest import make_model

SAMPLES = [torch.randint(0, 48, (2, 16), generator=torch.Generator().manual_seed(i)) for i in range(8)]


@pytest.fixture
def student(model: LlamaForCausalLM) -> LlamaForCausalLM:
    damaged = copy.deepcopy(model)
    with torch.no_grad():
        for layer in damaged.model.layers:
            layer.mlp.down_proj.weight[:, ::2] = 0
            layer.self_attn.o_proj.weight.mul_(3)
    return damaged


def _divergence(student: LlamaForCausalLM, teacher: LlamaForCausalLM) -> float:
    ids = torch.cat(SAMPLES)
    with torch.no_grad():
        wanted, found = (m(ids).logits.float().log_softmax(-1) for m in (teacher, student))
    return float((wanted.exp() * (wanted - found)).sum(-1).mean())


def test_student_comes_closer_and_teacher_stays(student: LlamaForCausalLM, model: LlamaForCausalLM) -> None:
    before, teacher = _divergence(student, model), copy.deepcopy(model.state_dict())
    result = heal(student, model, SAMPLES, max_steps=16, learning_rate=2e-3)
    assert _divergence(student, model) < 0.7 * before
    assert result.steps == 16
    assert result.stopped_by == "steps"
    assert result.last_loss < result.first_loss
    assert all(torch.equal(teacher[k], v) for k, v in model.state_dict().items())


def test_time_limit_ends_it_by_the_clock(student: LlamaForCausalLM, model: LlamaForCausalLM) -> None:
    ticks = itertools.count(0, 1)
    result = heal(student, model, SAMPLES, max_seconds=20, clock=lambda: float(next(ticks)))
    assert result.stopped_by == "time"
    assert 0 < result.steps < 16


def test_dtype_frozen_parameters_mode_and_rng_stay(
    student: LlamaForCausalLM, model: LlamaForCausalLM
) -> None:
    student.bfloat16().train()
    frozen = student.model.embed_tokens.weight
    frozen.requires_grad_(False)
    before, state = frozen.detach().clone(), torch.get_rng_state()
    heal(student, model, SAMPLES, max_steps=2, learning_rate=1e-3)
    assert {p.dtype for p in student.parameters()} == {torch.bfloat16}
    assert torch.equal(student.model.embed_tokens.weight, before)
    assert student.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in student.parameters())


def test_small_steps_are_not_lost_to_bf16(student: LlamaForCausalLM, model: LlamaForCausalLM) -> None:
    # at 1e-4 a bf16 weight of 0.02 can't move by one step: only float32 training adds the steps up
    student.bfloat16()
    before = student.lm_head.weight.detach().clone()
    heal(student, model, SAMPLES, max_steps=16, learning_rate=1e-4)
    assert not torch.equal(student.lm_head.weight, before)


def test_wider_models_learn_at_smaller_rates() -> None:
    narrow, wide = (default_learning_rate(make_model(hidden_size=size)) for size in (576, 1152))
    assert narrow == LEARNING_RATE == 2 * wide
    assert default_learning_rate(make_model(hidden_size=16)) == LEARNING_RATE


def test_a_half_precision_teacher_stays_as_it_is(student: LlamaForCausalLM, model: LlamaForCausalLM) -> None:
    model.bfloat16()
    before = copy.deepcopy(model.state_dict())
    result = heal(student, model, SAMPLES, max_steps=4)
    assert result.steps == 4
    assert all(torch.equal(before[k], v) and v.dtype == torch.bfloat16 for k, v in model.state_dict().items())


def test_the_loss_is_the_divergence_from_the_teacher(
    student: LlamaForCausalLM, model: LlamaForCausalLM
) -> None:
    one = [SAMPLES[0][:1]]
    with torch.no_grad():
        wanted, found = (m(one[0]).logits[0].log_softmax(-1) for m in (model, student))
    expected = (wanted.exp() * (wanted - found)).sum(-1).mean()
    # a small difference of log-probabilities: it is as exact as they are
    assert_near(heal(student, model, one, max_steps=1).first_loss, expected, 1e-6, scale=wanted.abs().max())


@pytest.mark.parametrize("limits", [{"max_seconds": 0}, {"max_seconds": -1.0}, {"max_steps": 0}])
def test_limits_must_be_positive(
    student: LlamaForCausalLM, model: LlamaForCausalLM, limits: dict[str, float]
) -> None:
    with pytest.raises(InvalidOptionError, match="must be positive"):
        heal(student, model, SAMPLES, **limits)  # type: ignore[arg-type]


def test_progress_reaches_a_hundred(student: LlamaForCausalLM, model: LlamaForCausalLM) -> None:
    said: list[int] = []
    heal(student, model, SAMPLES, max_steps=4, report=lambda s, d, t, m: said.append(d))
    assert said == [25, 50, 75, 100]


def test_a_frozen_student_is_refused_as_it_is(student: LlamaForCausalLM, model: LlamaForCausalLM) -> None:
    student.bfloat16().requires_grad_(False)
    with pytest.raises(InvalidOptionError, match="all are frozen"):
        heal(student, model, SAMPLES, max_steps=1)
    assert {p.dtype for p in student.parameters()} == {torch.bfloat16}
