"""Guide, "Data-Driven Width Pruning: Deep Dive"."""

from __future__ import annotations

import torch


def test_guide_how_it_works_is_prose(blocks) -> None:
    (code,) = blocks("How It Works")
    assert all(line.startswith("#") for line in code.strip().splitlines())


def test_guide_domain_specific_example(run, blocks, local_data, tmp_path) -> None:
    (code,) = blocks("Complete Example: Domain-Specific Model")
    names = run(code)
    assert names["pruned_model"].dtype == torch.float16
    assert names["pruned_model"].config.intermediate_size == 308
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {
        path.name for path in (tmp_path / "medical-llama-pruned-20").iterdir()
    }


def test_guide_comparing_static_with_data_driven(run, blocks) -> None:
    (code,) = blocks("Comparing Static vs Data-Driven Pruning")
    names = run(code)
    static, data = names["static_pruned"], names["datadriven_pruned"]
    assert static.config.intermediate_size == data.config.intermediate_size == 308
    pairs = zip(static.model.layers, data.model.layers, strict=True)
    assert any(not torch.equal(a.mlp.up_proj.weight, b.mlp.up_proj.weight) for a, b in pairs)


def test_guide_error_handling(run, blocks, capsys) -> None:
    (code,) = blocks("Error Handling")
    assert run(code)["pruned"].config.intermediate_size == 346
    assert "Error: Data-driven pruning with dataloader is only supported" in capsys.readouterr().out
