"""Reconstruction: layers come nearer to the dense ones on tokens that neither fit nor refit has seen."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from optipfair_engine import PruningPlan
from optipfair_engine.architectures import locate
from optipfair_engine.calibration import CalibrationSet, as_calibration_set
from optipfair_engine.errors import CalibrationError, InvalidOptionError
from optipfair_engine.options.prune import PruneOptions
from optipfair_engine.plans.apply import apply_plan, narrowed_in_passing
from optipfair_engine.pruning import prune_model
from optipfair_engine.pruning.planner import make_calibrated_plan, make_plan
from optipfair_engine.pruning.width import reconstruction
from optipfair_engine.pruning.width.reconstruction import reconstruct
from tests.tiny import tiny_model

BASE: dict[str, Any] = {"pruning_percentage": 40, "compensation": "least_squares"}
ASKED = PruneOptions(**BASE, reconstruction={"max_seconds": 60})


def tokens(samples: int, seed: int = 3) -> CalibrationSet:
    """Samples of a text with a rule: each token is followed by one of two."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 60, (samples, 1), generator=generator)
    for _ in range(31):
        step = torch.randint(1, 3, (samples, 1), generator=generator)
        ids = torch.cat([ids, 3 + (ids[:, -1:] * step) % 57], 1)
    mask = torch.ones_like(ids)
    mask[0, 20:] = 0
    return as_calibration_set(
        [{"input_ids": a, "attention_mask": b} for a, b in zip(ids.split(8), mask.split(8), strict=True)]
    )


def wild_model(family: str = "llama") -> Any:
    """A tiny model whose MLPs say something."""
    return tiny_model(family, initializer_range=0.3, num_hidden_layers=2, pad_token_id=0)


def mlp_errors(model: Any, pruned: Any, calibration: CalibrationSet) -> list[float]:
    """Relative squared error of each MLP's output on the dense layers' inputs."""
    errors = []
    dense, narrow = locate(model), locate(pruned)
    for layer in range(dense.num_layers):
        caught: list[tuple[Tensor, Tensor]] = []
        handle = dense.mlp(layer).module.register_forward_hook(
            lambda _module, args, output, caught=caught: caught.append((args[0], output))
        )
        with torch.no_grad():
            for batch in calibration.batches:
                model(**batch)
            handle.remove()
            wrong = sum(float((narrow.mlp(layer).module(x) - y).square().sum()) for x, y in caught)
        errors.append(wrong / sum(float(y.square().sum()) for _, y in caught))
    return errors


@pytest.mark.parametrize("family", ["llama", "phi3", "gpt2"])
def test_layers_come_nearer_to_the_dense_ones_on_text_of_the_same_kind(family: str) -> None:
    model, kind = wild_model(family), "MLP" if family == "gpt2" else "MLP_GLU"
    options = ASKED.changed(pruning_type=kind)
    plan = make_plan(locate(model), options, tokens(96))
    refitted = make_plan(locate(model), options.changed(reconstruction=None), tokens(96))
    assert plan.kept_neurons == refitted.kept_neurons
    made = plan.provenance
    assert made.reconstructed_layers == (0, 1)
    assert made.reconstruction_errors is not None
    assert all(after < before for before, after in made.reconstruction_errors.values())
    fresh = tokens(16, seed=11)
    trained = mlp_errors(model, apply_plan(model, plan), fresh)
    for after, before in zip(trained, mlp_errors(model, apply_plan(model, refitted), fresh), strict=True):
        assert after < before


def test_the_plan_holds_what_was_trained_and_is_applied_the_same_way_everywhere(tmp_path: Path) -> None:
    model = wild_model()
    plan = make_plan(locate(model), ASKED, tokens(64))
    plan.save(tmp_path)
    again = PruningPlan.load(tmp_path)
    assert again.provenance == plan.provenance
    pruned, ids = apply_plan(model, again), torch.arange(3, 30)[None]
    with torch.no_grad():
        wanted = pruned(ids).logits
        with narrowed_in_passing(locate(model), plan):
            assert torch.equal(model(ids).logits, wanted)


def ticks() -> Iterator[float]:
    return map(float, count())


def test_time_that_is_up_leaves_the_other_layers_as_they_were() -> None:
    model, calibration = wild_model(), tokens(64)
    made = make_calibrated_plan(locate(model), PruneOptions(**BASE), calibration)
    assert made.statistics is not None
    clock, said = ticks(), list[str]()
    found = reconstruct(
        locate(model),
        made.plan,
        made.statistics,
        calibration,
        max_seconds=6,
        report=lambda *told: said.append(told[3]),
        clock=lambda: next(clock),
    )
    assert list(found.provenance.reconstruction_errors or ()) == [0]
    assert len(said) == 1
    second = locate(model).mlp(1).names["down"]
    assert torch.equal(found.weights[second], made.plan.weights[second])


def test_a_layer_that_gets_worse_keeps_its_refit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconstruction, "LEARNING_RATE", 30.0)
    model, calibration = wild_model(), tokens(64)
    plan = make_plan(locate(model), ASKED, calibration)
    refitted = make_plan(locate(model), ASKED.changed(reconstruction=None), calibration)
    assert plan.provenance.reconstructed_layers == ()
    assert plan.weights.keys() == refitted.weights.keys()
    assert all(torch.equal(plan.weights[name], refitted.weights[name]) for name in plan.weights)


def test_a_model_in_train_mode_stays_so_and_says_what_was_gained() -> None:
    model = wild_model().train()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    _, stats = prune_model(
        model,
        **BASE,
        reconstruction={"max_seconds": 60},
        dataloader=tokens(64).batches,
        show_progress=False,
        return_stats=True,
    )
    assert model.training
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert stats["reconstruction_layers"] == 2
    assert stats["reconstruction_error_after"] < stats["reconstruction_error_before"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"compensation": "none"}, "reconstruction needs compensation"),
        ({"pruning_type": "ATTENTION"}, "reconstruction can't be used with pruning_type ATTENTION"),
        ({"fairness": {"prompt_pairs": [["a", "b"]]}}, "not with fairness"),
        ({"reconstruction": {"max_seconds": 0}}, "reconstruction_seconds must be above 0"),
    ],
)
def test_what_it_does_not_go_with_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidOptionError, match=message):
        make_plan(locate(wild_model()), ASKED.changed(**changes), tokens(16))


def test_too_few_samples_to_hold_any_out_are_refused() -> None:
    with pytest.raises(CalibrationError, match="every 8th calibration sample, and there are only 7"):
        make_plan(locate(wild_model()), ASKED, tokens(7))
    with pytest.raises(InvalidOptionError, match="needs calibration"):
        make_plan(locate(wild_model()), ASKED)
