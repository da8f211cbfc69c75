"""What is claimed of every family, as functions that raise AssertionError where a claim is wrong.

A refusal is an outcome of its own: ``UnsupportedModelError``, raised before anything is touched.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from transformers import GenerationConfig, PreTrainedModel

from optipfair_engine.architectures import ModelView, locate
from optipfair_engine.architectures.config_edits import overrides
from optipfair_engine.checkpoints import load_pruned, save_pruned
from optipfair_engine.checkpoints.loading import quiet_progress
from optipfair_engine.checkpoints.reload import model_logits
from optipfair_engine.errors import UnsupportedModelError
from optipfair_engine.pruning import analyze_layer_importance, prune_model
from tests.numbers import assert_near
from tests.optipfair_engine.families.zoo import VOCABULARY, Family, build

TOKENS = [
    [(7 * i + 3) % (VOCABULARY - 10) for i in range(12)],
    [(11 * i + 5) % (VOCABULARY - 10) for i in range(12)],
]


@dataclass(frozen=True)
class Saved:
    """A pruned model on disk, and the logits that it had in memory."""

    folder: Path
    logits: Tensor


@dataclass(frozen=True)
class Outcome:
    """How a claim fared: it holds ("yes", or a word on its limits), or the family refuses."""

    cell: str
    reason: str | None = None
    saved: list[Saved] = field(default_factory=list)

    @property
    def refused(self) -> bool:
        return self.reason is not None


Check = Callable[[Family, Path], Outcome]


def check_width(family: Family, folder: Path) -> Outcome:
    """All layers: equals the dense model with zeroed neurons; generates; reloads with plain transformers."""
    model = build(family)
    view = locate(model)
    layers = _prunable(view)
    if not layers:
        return _refusal(model, lambda: _prune_width(model, family))
    if len(layers) < view.num_layers:
        _refusal(model, lambda: _prune_width(model, family))
    with _untouched(model):
        pruned = _prune_width(model, family, layers if len(layers) < view.num_layers else None)
    _assert_equals_masked(model, pruned)
    _assert_cache_is_right(family, pruned)
    saved = _save(pruned, folder / "width")
    _assert_plain_load_is_right_or_raises(
        pruned, saved, must_load=not pruned.config.get_text_config().is_heterogeneous
    )
    return Outcome("yes" if len(layers) == view.num_layers else "dense layers", saved=[saved])


def check_chosen_layers(family: Family, folder: Path) -> Outcome:
    """One layer of several: reloads through load_pruned; a plain load raises or is right, never random."""
    model = build(family)
    layers = _prunable(locate(model))
    if not layers:
        return _refusal(model, lambda: _prune_width(model, family, [1]))
    with _untouched(model):
        pruned = _prune_width(model, family, layers[-1:])
    _assert_equals_masked(model, pruned)
    _assert_cache_is_right(family, pruned)
    saved = _save(pruned, folder / "chosen")
    _assert_plain_load_is_right_or_raises(pruned, saved, must_load=len(layers) == 1)
    again = load_pruned(saved.folder)
    assert type(again) is type(pruned)
    assert locate(again).layer_sizes() == locate(pruned).layer_sizes()
    assert overrides(again.config.get_text_config()) == overrides(pruned.config.get_text_config())
    return Outcome("yes", saved=[saved])


def check_depth(family: Family, folder: Path) -> Outcome:
    """Layers gone: equals the dense model with those layers bypassed, generates, layer numbers follow."""
    model = build(family)
    try:
        locate(model).check_depth([1])
    except UnsupportedModelError:
        return _refusal(model, lambda: _prune_depth(model, [1]))
    saved = []
    for removed in ([1], [0, 2], [3]):
        with _untouched(model):
            pruned = _prune_depth(model, removed)
        expected = _bypassed_logits(model, removed)
        assert torch.equal(model_logits(pruned, TOKENS), expected), f"without layers {removed}"
        assert not torch.equal(expected, model_logits(model, TOKENS)), "removing layers changed nothing"
        _assert_numbered(locate(pruned))
        if removed != [3]:  # without the last layer, the others' places in a cache stay
            _assert_cache_is_right(family, pruned)
        if removed == [0, 2]:  # both ends of what can go wrong: a first layer, and a hole
            saved.append(_save(pruned, folder / "depth"))
            _assert_plain_load_is_right_or_raises(pruned, saved[-1], must_load=True)
    return Outcome("yes", saved=saved)


def check_heads(family: Family, folder: Path) -> Outcome:
    """One KV group in two: equals the dense model with those heads' outputs zeroed."""
    model = build(family)
    view = locate(model)
    try:
        view.attention(0).check_heads(torch.tensor([0, 1]), torch.tensor([0]))
    except UnsupportedModelError:
        return _refusal(
            model, lambda: prune_model(model, "ATTENTION", pruning_percentage=50, show_progress=False)
        )
    with _untouched(model):
        pruned = prune_model(model, "ATTENTION", pruning_percentage=50, show_progress=False)
    assert locate(pruned).attention(0).num_key_value_heads == 1
    _assert_equals_masked(model, pruned)
    _assert_cache_is_right(family, pruned)
    saved = _save(pruned, folder / "heads")
    _assert_plain_load_is_right_or_raises(pruned, saved, must_load=True)
    return Outcome("yes", saved=[saved])


def check_importance(family: Family, folder: Path) -> Outcome:
    """1 − cos of each layer's input and output, as computed by hand."""
    model = build(family)
    ids = torch.tensor(TOKENS)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with _untouched(model):
        scores = analyze_layer_importance(model, [batch], show_progress=False)
    expected = _importance_by_hand(model)
    assert sorted(scores) == list(range(locate(model).num_layers))
    # 1 − cos is as exact as the cosine
    assert_near([scores[index] for index in sorted(scores)], expected, scale=1)
    return Outcome("yes")


def check_experts(family: Family, folder: Path) -> Outcome:
    """A quarter of the experts gone: equals the dense model whose router never chooses them."""
    model = build(family)
    ids = torch.tensor(TOKENS)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def prune() -> PreTrainedModel:
        return prune_model(model, "EXPERTS", pruning_percentage=25, dataloader=[batch], show_progress=False)

    try:
        layers = locate(model).expert_layers()
    except UnsupportedModelError:
        refused = _refusal(model, prune)
        return refused if family.kind in ("moe", "hybrid") else Outcome("–")
    with _untouched(model):
        pruned = prune()
    expected = model_logits(never_chosen(model, pruned), TOKENS)
    assert_near(model_logits(pruned, TOKENS), expected)
    changed = (expected - model_logits(model, TOKENS)).abs().max()
    assert changed > 1e-3 * expected.abs().max(), "removing them changed nothing"
    assert all(locate(pruned).experts(layer).num_experts == 3 for layer in layers)
    _assert_cache_is_right(family, pruned)
    saved = _save(pruned, folder / "experts")
    _assert_plain_load_is_right_or_raises(pruned, saved, must_load=True)
    return Outcome("yes", saved=[saved])


CHECKS: dict[str, Check] = {
    "MLP neurons": check_width,
    "neurons of chosen layers": check_chosen_layers,
    "layers": check_depth,
    "attention heads": check_heads,
    "experts": check_experts,
    "layer importance": check_importance,
}


def never_chosen(dense: PreTrainedModel, pruned: PreTrainedModel) -> PreTrainedModel:
    """A copy of the dense model whose routers' logits are −inf for the experts that the pruned one lacks.

    Where a router adds a correction to what it makes of its logits, that is −inf, too.
    """
    copied = copy.deepcopy(dense)
    view, small = locate(copied), locate(pruned)
    for layer in small.expert_layers():
        router, rows = view.experts(layer).router, small.experts(layer).router.weight
        gone = ~(router.weight[:, None, :] == rows[None, :, :]).all(dim=-1).any(dim=1)
        assert int(gone.sum()) == len(router.weight) - len(rows), "a router's row is none of the dense one's"
        router.forward = partial(_with_logits_of, router.forward, gone)
        if hasattr(router, "e_score_correction_bias"):
            router.e_score_correction_bias[gone] = -torch.inf
    return copied


def _with_logits_of(forward: Callable[..., object], gone: Tensor, *args: object) -> object:
    class Masking(TorchFunctionMode):
        def __torch_function__(self, func: Callable, types: object, args: tuple = (), kwargs: object = None):
            found = func(*args, **(kwargs or {}))
            return found.masked_fill(gone, -torch.inf) if func is torch.nn.functional.linear else found

    with Masking():
        return forward(*args)


def _prunable(view: ModelView) -> list[int]:
    layers = []
    for index in range(view.num_layers):
        try:
            view.mlp(index)
        except UnsupportedModelError:
            continue
        layers.append(index)
    return layers


def _prune_width(
    model: PreTrainedModel, family: Family, layers: Sequence[int] | None = None
) -> PreTrainedModel:
    return prune_model(
        model, family.pruning_type, pruning_percentage=25, layer_indices=layers, show_progress=False
    )


def _prune_depth(model: PreTrainedModel, layers: list[int]) -> PreTrainedModel:
    return prune_model(model, "DEPTH", layer_indices=layers, pruning_percentage=None, show_progress=False)


def _refusal(model: PreTrainedModel, action: Callable[[], object]) -> Outcome:
    """The refusal names the family, and nothing was touched."""
    with _untouched(model):
        try:
            action()
        except UnsupportedModelError as error:
            name = model.config.get_text_config().model_type
            assert name in str(error), f"the refusal does not name {name}: {error}"
            return Outcome("refused", reason=str(error))
    raise AssertionError("neither done nor refused")


@contextmanager
def _untouched(model: PreTrainedModel) -> Iterator[None]:
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    config = copy.deepcopy(model.config.to_dict())
    rng = torch.get_rng_state()
    yield
    after = model.state_dict()
    assert state.keys() == after.keys() and all(torch.equal(state[name], after[name]) for name in state)
    assert model.config.to_dict() == config
    assert torch.equal(torch.get_rng_state(), rng)


def _assert_equals_masked(dense: PreTrainedModel, pruned: PreTrainedModel) -> None:
    """Zeroing what was removed in a dense copy gives the same function.

    What was kept is recovered from the weights themselves: a kept column of the down (or output) projection
    is found among the dense ones.
    """
    masked = copy.deepcopy(dense)
    before, after, small = model_logits(dense, TOKENS), locate(masked), locate(pruned)
    for index in range(after.num_layers):
        for part in ("mlp", "attention"):
            try:
                large, little = getattr(after, part)(index), getattr(small, part)(index)
            except UnsupportedModelError:
                continue
            name = "down_weight" if part == "mlp" else "o_weight"
            _zero_missing_columns(getattr(large, name), getattr(little, name))
    expected, found = model_logits(masked, TOKENS), model_logits(pruned, TOKENS)
    assert_near(found, expected)
    changed = (expected - before).abs().max()
    assert changed > 1e-3 * expected.abs().max(), "removing them changed nothing"


def _zero_missing_columns(large: Tensor, little: Tensor) -> None:
    same = (large.detach()[:, :, None] == little.detach()[:, None, :]).all(dim=0)  # [large, little]
    assert same.any(dim=0).all(), "a column of the pruned weight is none of the dense one's"
    with torch.no_grad():
        large[:, ~same.any(dim=1)] = 0


def _bypassed_logits(model: PreTrainedModel, removed: Sequence[int]) -> Tensor:
    """The dense model with layers that hand on their input."""

    def bypass(module: torch.nn.Module, args: tuple, kwargs: dict, output: object) -> object:
        hidden = args[0] if args else kwargs["hidden_states"]
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    copied = copy.deepcopy(model)
    for index in removed:
        locate(copied).layers[index].register_forward_hook(bypass, with_kwargs=True)
    return model_logits(copied, TOKENS)


def _importance_by_hand(model: PreTrainedModel) -> list[float]:
    scores: dict[int, float] = {}

    def hook(index: int) -> Callable:
        def record(module: torch.nn.Module, args: tuple, kwargs: dict, output: object) -> None:
            before = args[0] if args else kwargs["hidden_states"]
            after = output[0] if isinstance(output, tuple) else output
            # AltUp families carry several copies of the stream; the engine looks at all of them
            cosine = torch.cosine_similarity(before.double(), after.double(), dim=-1)
            scores[index] = 1 - cosine.mean().item()

        return record

    copied = copy.deepcopy(model)
    for index, layer in enumerate(locate(copied).layers):
        layer.register_forward_hook(hook(index), with_kwargs=True)
    model_logits(copied, TOKENS)
    return [scores[index] for index in sorted(scores)]


def _assert_numbered(view: ModelView) -> None:
    for number, layer in enumerate(view.layers):
        for name, module in layer.named_modules():
            found = module.__dict__.get("layer_idx", number)
            assert found in (number, None), f"{name}.layer_idx of layer {number} is {found}"


def _assert_cache_is_right(family: Family, model: PreTrainedModel) -> None:
    if not family.generates:
        return
    ids = torch.tensor(TOKENS[:1])
    options = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0, "output_logits": True}
    with torch.no_grad():
        cached, plain = (
            model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                generation_config=GenerationConfig(
                    **options, use_cache=use_cache, return_dict_in_generate=True
                ),
            )
            for use_cache in (True, False)
        )
    assert torch.equal(cached.sequences, plain.sequences)
    assert_near(torch.stack(cached.logits), torch.stack(plain.logits), 1e-4)


def _save(model: PreTrainedModel, folder: Path) -> Saved:
    save_pruned(model, folder, verify="structure")
    return Saved(folder, model_logits(model, TOKENS))


def _assert_plain_load_is_right_or_raises(model: PreTrainedModel, saved: Saved, *, must_load: bool) -> None:
    """Plain ``from_pretrained``, without this engine."""
    try:
        with quiet_progress():
            loaded, info = type(model).from_pretrained(saved.folder, output_loading_info=True)
    except Exception as error:  # transformers' own refusal, of whatever type
        unsaid = locate(model).architecture.mlp
        assert not must_load or (unsaid and unsaid.size_attribute is None), f"a plain load raises: {error!r}"
        return
    assert not info["missing_keys"] and not info["mismatched_keys"]
    assert torch.equal(model_logits(loaded, TOKENS), saved.logits)
