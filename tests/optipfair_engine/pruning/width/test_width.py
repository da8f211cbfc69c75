"""Width pruning through ``prune_model``: selection, calibration, sizes, refusals."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset
from transformers import BatchEncoding

from optipfair_engine.architectures import ModelView, locate
from optipfair_engine.calibration import as_calibration_set
from optipfair_engine.errors import (
    CalibrationError,
    InvalidOptionError,
    NonFiniteWeightsError,
    UnsupportedModelError,
)
from optipfair_engine.options.prune import PruneOptions
from optipfair_engine.progress import null_reporter
from optipfair_engine.pruning import make_plan, prune_model
from optipfair_engine.pruning.curves import replan
from optipfair_engine.pruning.gathering import IN_MEMORY
from optipfair_engine.pruning.width.scores import hybrid_maw, maw, top_indices
from tests.numbers import assert_near


def kept(model, dataloader=None, **options):
    calibration = None if dataloader is None else as_calibration_set(dataloader)
    return make_plan(locate(model), PruneOptions(**options), calibration).kept_neurons


def test_static_maw_keeps_the_highest_scores(llama) -> None:
    plan = kept(llama, pruning_percentage=29)
    for index, layer in enumerate(llama.model.layers):
        scores = maw(layer.mlp.gate_proj.weight, layer.mlp.up_proj.weight)
        assert plan[index] == top_indices(scores, 71)


def test_the_plan_says_how_ties_were_broken_and_keeps_it_at_another_size(llama) -> None:
    with torch.no_grad():
        for layer in llama.model.layers:
            layer.mlp.gate_proj.weight.copy_(layer.mlp.gate_proj.weight.sign())
            layer.mlp.up_proj.weight.fill_(0.5)
    view = locate(llama)
    as_topk = make_plan(view, PruneOptions(pruning_percentage=30, tie_break="topk"))
    by_index = make_plan(view, PruneOptions(pruning_percentage=30))
    assert as_topk.provenance.tie_break == "topk"
    assert by_index.provenance.tie_break is None
    assert by_index.kept_neurons[0] == tuple(range(70))
    expected = torch.topk(torch.full((100,), 3.0), 70).indices.sort().values
    assert as_topk.kept_neurons[0] == tuple(expected.tolist()) != by_index.kept_neurons[0]
    smaller = replan(view, PruneOptions(pruning_percentage=50), as_topk, None)
    assert smaller.provenance.tie_break == "topk"


@pytest.mark.parametrize(
    "options",
    [
        {"neuron_selection_method": "OBS", "compensation": "least_squares"},
        {"allocation": "allocated"},
        {"pruning_type": "ATTENTION"},
    ],
)
def test_ties_of_selections_that_know_none_are_refused(options) -> None:
    with pytest.raises(InvalidOptionError, match="tie_break"):
        PruneOptions(pruning_percentage=30, tie_break="topk", **options)


def test_maw_and_ppm_are_one_method(llama) -> None:
    ppm = kept(llama, pruning_percentage=29, neuron_selection_method="PPM")
    assert kept(llama, pruning_percentage=29) == ppm


def down_input(model, batch) -> torch.Tensor:
    seen: list[torch.Tensor] = []
    handle = model.model.layers[2].mlp.down_proj.register_forward_pre_hook(lambda _m, a: seen.append(a[0]))
    with torch.no_grad():
        model(**batch)
    handle.remove()
    return seen[0]


def _norms(view: ModelView, batches: Any, layers: Sequence[int]) -> Mapping[int, torch.Tensor]:
    return IN_MEMORY.norms(view, as_calibration_set(batches), layers, null_reporter)


def test_activation_norms_are_over_unmasked_tokens_of_the_down_projections_input(llama, batches) -> None:
    total = torch.zeros(100)
    for batch in batches:
        total += (down_input(llama, batch).square() * batch["attention_mask"][..., None]).sum(dim=(0, 1))
    found = _norms(locate(llama), batches, [2])[2]
    assert_near(found, total.sqrt())


def test_data_driven_maw_uses_the_hybrid_score(llama, batches) -> None:
    norms = _norms(locate(llama), batches, range(6))
    plan = kept(llama, batches, pruning_percentage=20)
    for index, layer in enumerate(llama.model.layers):
        mlp = layer.mlp
        scores = hybrid_maw(mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight, norms[index])
        assert plan[index] == top_indices(scores, 80)


def _variants(batch_list):
    ids = torch.cat([batch["input_ids"] for batch in batch_list])
    mask = torch.cat([batch["attention_mask"] for batch in batch_list])
    pad = torch.zeros(len(ids), 9, dtype=torch.int64)
    singles = [{"input_ids": i[m.bool()][None]} for i, m in zip(ids, mask, strict=True)]
    return {
        "one sample at a time, without padding": singles,
        "one batch": [{"input_ids": ids, "attention_mask": mask}],
        "more padding, of other tokens": [
            {"input_ids": torch.cat([ids, pad + 7], 1), "attention_mask": torch.cat([mask, pad], 1)}
        ],
        "tuples": DataLoader(TensorDataset(ids, mask), batch_size=5),
        "BatchEncoding": [BatchEncoding({"input_ids": ids, "attention_mask": mask})],
        "another mapping": [UserDict({"input_ids": ids, "attention_mask": mask, "text": ["x"] * 12})],
        "lists": [{"input_ids": ids.tolist(), "attention_mask": mask.tolist()}],
    }


@pytest.mark.parametrize(
    "name", list(_variants([{"input_ids": torch.ones(1, 1), "attention_mask": torch.ones(1, 1)}]))
)
def test_statistics_depend_neither_on_padding_nor_on_batching(llama, batches, name: str) -> None:
    expected = _norms(locate(llama), batches, range(6))
    found = _norms(locate(llama), _variants(batches)[name], range(6))
    for layer, norms in expected.items():
        assert_near(found[layer], norms)


def test_calibration_leaves_mode_hooks_and_gradients_alone(llama, batches) -> None:
    llama.train()
    llama.model.layers[1].mlp.eval()
    prune_model(llama, dataloader=batches, show_progress=False)
    assert llama.training and not llama.model.layers[1].mlp.training and llama.model.layers[1].training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in llama.modules())


def test_an_empty_or_fully_masked_loader_is_an_error(llama, batches) -> None:
    masked = [{**batches[0], "attention_mask": torch.zeros(4, 16, dtype=torch.int64)}]
    for loader in ([], masked):
        with pytest.raises(CalibrationError):
            prune_model(llama, dataloader=loader, show_progress=False)


@pytest.mark.parametrize("method", ["VOW", "PON", "L2"])
def test_only_maw_takes_a_dataloader(llama, batches, method: str) -> None:
    with pytest.raises(ValueError, match="Data-driven pruning with dataloader is only supported"):
        prune_model(llama, neuron_selection_method=method, dataloader=batches, show_progress=False)


def test_cfsp_and_obs_say_what_they_need(llama, batches) -> None:
    with pytest.raises(InvalidOptionError, match="needs calibration"):
        prune_model(llama, neuron_selection_method="CFSP", show_progress=False)
    with pytest.raises(InvalidOptionError, match="least_squares"):
        prune_model(llama, neuron_selection_method="OBS", dataloader=batches, show_progress=False)
    pruned = prune_model(llama, neuron_selection_method="CFSP", dataloader=batches, show_progress=False)
    assert pruned.config.intermediate_size == 90


def test_nan_is_refused_before_anything_changes(llama) -> None:
    llama.model.layers[4].self_attn.q_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(NonFiniteWeightsError, match=r"model\.layers\.4\.self_attn\.q_proj\.weight"):
        prune_model(llama, inplace=True, show_progress=False)
    assert llama.model.layers[0].mlp.up_proj.out_features == 100


def test_expansion_rate_wins_over_the_default_percentage_only(llama) -> None:
    assert prune_model(llama, expansion_rate=200, show_progress=False).config.intermediate_size == 64
    assert (
        prune_model(llama, expansion_rate=200, pruning_percentage=None, show_progress=False)
        .config.intermediate_size == 64
    )  # fmt: skip
    for percentage in (10, 10.0, 20):
        with pytest.raises(ValueError, match="mutually exclusive"):
            prune_model(llama, expansion_rate=200, pruning_percentage=percentage, show_progress=False)


def test_a_divisor_that_undoes_the_pruning_says_so(llama_of) -> None:
    model = llama_of(intermediate_size=128)
    with pytest.warns(UserWarning, match="nothing is pruned"):
        pruned = prune_model(model, pruning_percentage=10, expansion_divisor=128, show_progress=False)
    assert pruned.config.intermediate_size == 128


def test_plain_mlps_are_told_from_gated_ones(gpt2, llama) -> None:
    with pytest.raises(
        UnsupportedModelError, match=r'not compatible with GLU pruning.*gpt2.*use pruning_type="MLP"'
    ):
        prune_model(gpt2, show_progress=False)
    with pytest.raises(UnsupportedModelError, match=r'llama.*use pruning_type="MLP_GLU"'):
        prune_model(llama, pruning_type="MLP", show_progress=False)


@pytest.mark.parametrize("method", ["MAW", "PPM", "VOW", "PON", "L2"])
def test_plain_mlps_are_pruned(gpt2, method: str) -> None:
    pruned = prune_model(gpt2, "MLP", method, 25, show_progress=False)
    assert pruned.config.n_inner == 96
    plan = make_plan(
        locate(gpt2), PruneOptions(pruning_type="MLP", neuron_selection_method=method, pruning_percentage=25)
    )
    ids = torch.arange(20)[None]
    for index, layer in enumerate(gpt2.transformer.h):
        gone = [i for i in range(128) if i not in plan.kept_neurons[index]]
        layer.mlp.c_proj.weight.data[gone] = 0
    assert_near(pruned(ids).logits, gpt2(ids).logits)


def test_stats_count_all_parameters_once(llama) -> None:
    for parameter in llama.model.layers[0].parameters():
        parameter.requires_grad_(False)
    pruned, stats = prune_model(llama, pruning_percentage=29, return_stats=True, show_progress=False)
    total = sum(p.numel() for p in llama.parameters())
    removed = 6 * 29 * 3 * 32
    assert stats == {
        "original_parameters": total,
        "pruned_parameters": total - removed,
        "reduction": removed,
        "percentage_reduction": 100 * removed / total,
        "expansion_rate": 100 * 71 / 32,
        "pruned_layers": 6,
        "total_layers": 6,
    }
    assert sum(p.numel() for p in pruned.parameters()) == total - removed


def test_tied_embeddings_stay_tied_and_count_once(llama_of) -> None:
    model = llama_of(tie_word_embeddings=True)
    pruned, stats = prune_model(model, return_stats=True, show_progress=False)
    assert pruned.lm_head.weight is pruned.model.embed_tokens.weight
    assert stats["original_parameters"] == sum(p.numel() for p in model.parameters())


def test_only_the_named_layers_change(llama) -> None:
    pruned, stats = prune_model(
        llama, pruning_percentage=50, layer_indices=[1, 4], return_stats=True, show_progress=False
    )
    assert [layer.mlp.up_proj.out_features for layer in pruned.model.layers] == [100, 50, 100, 100, 50, 100]
    assert (stats["pruned_layers"], stats["total_layers"]) == (2, 6)


def test_layer_indices_may_be_any_iterable_of_integers(llama) -> None:
    import numpy as np

    for indices in ((i for i in (1, 4)), np.array([4, 1]), {1, 4}, range(1, 5, 3)):
        pruned = prune_model(llama, pruning_percentage=50, layer_indices=indices, show_progress=False)
        assert [i for i, layer in enumerate(pruned.model.layers) if layer.mlp.up_proj.out_features == 50] == [
            1,
            4,
        ]


def test_the_same_options_give_the_same_plan_bytes(llama, batches, tmp_path) -> None:
    for name in ("a", "b"):
        make_plan(locate(llama), PruneOptions(), as_calibration_set(batches)).save(tmp_path / name)
    assert (tmp_path / "a/plan.json").read_bytes() == (tmp_path / "b/plan.json").read_bytes()


def test_offloaded_weights_are_refused_by_name(llama, tmp_path) -> None:
    from transformers import AutoModelForCausalLM

    llama.save_pretrained(tmp_path / "model")
    devices = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    devices |= {f"model.layers.{i}": "disk" if i == 5 else "cpu" for i in range(6)}
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", device_map=devices, offload_folder=tmp_path / "offload"
    )
    with pytest.raises(UnsupportedModelError, match=r"layers\.5\.mlp.*offloaded.*without offloading"):
        prune_model(model, show_progress=False)
