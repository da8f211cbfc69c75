"""Guide, "Python API for Pruning"."""

from __future__ import annotations


def test_guide_python_api(run, blocks, capsys, tmp_path) -> None:
    (code,) = blocks("Python API for Pruning")
    names = run(code)
    assert [layer.mlp.up_proj.out_features for layer in names["pruned_model"].model.layers[:5]] == [
        384,
        384,
        288,
        384,
        288,
    ]
    assert "Original parameters" in capsys.readouterr().out
    assert (tmp_path / "pruned-model" / "model.safetensors").is_file()


def test_what_the_example_saves_reloads_with_its_unequal_layers(run, blocks, tmp_path) -> None:
    import torch

    from optipfair_engine import load_pruned

    (code,) = blocks("Python API for Pruning")
    pruned = run(code)["pruned_model"]
    reloaded = load_pruned(tmp_path / "pruned-model")
    ids = torch.arange(20)[None]
    assert torch.equal(pruned.eval()(ids).logits, reloaded(ids).logits)
