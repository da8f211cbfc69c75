"""A tiny model in which one neuron causes a bias, and another reacts more and causes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.optipfair_engine.bias.conftest import SUBJECTS

LAYER, CAUSING, REACTING = 3, 11, 30
#: The prompts that the neurons are made from; tests ask others too.
PROMPTS = {word: [f"the {word} {subject} walked home" for subject in SUBJECTS] for word in ("male", "female")}


@dataclass(frozen=True)
class Edited:
    model: Any
    layer: int = LAYER
    causing: int = CAUSING
    reacting: int = REACTING


def _inputs(model: Any, tokenizer: Any, texts: list[str]) -> Tensor:
    """What the MLP of the layer reads ``[texts, tokens, hidden]``."""
    seen: list[Tensor] = []
    projection = model.model.layers[LAYER].mlp.up_proj
    handle = projection.register_forward_hook(lambda _module, args, _output: seen.append(args[0][0]))
    for text in texts:
        model(**tokenizer(text, return_tensors="pt"))
    handle.remove()
    return torch.stack(seen)


@pytest.fixture(scope="session")
def edited(make_llama, tokenizer) -> Edited:
    """In the last layer, which only the last word's next token is read from.

    One neuron answers to "female" at the last word and writes "she" and not "he"; the other answers, more
    strongly, at the word itself, and to nothing at the last one.
    """
    model = make_llama(seed=7)
    mlp = model.model.layers[LAYER].mlp
    she, he = tokenizer.convert_tokens_to_ids(["she", "he"])
    with torch.no_grad():
        for layer in model.model.layers:  # little else shall differ between the prompts
            layer.mlp.down_proj.weight *= 0.25
            layer.self_attn.o_proj.weight *= 0.25
        male, female = (_inputs(model, tokenizer, PROMPTS[word]) for word in ("male", "female"))
        last = (female - male)[:, -1].mean(dim=0)
        basis = torch.linalg.qr(torch.cat([male[:, -1], female[:, -1]]).T).Q
        early = (female - male)[:, 1].mean(dim=0)
        early = early - basis @ (basis.T @ early)
        for neuron, direction, size in ((CAUSING, last, 16), (REACTING, early, 6)):
            for module in (mlp.gate_proj, mlp.up_proj):
                module.weight[neuron] = size * direction / direction.norm()
        written = model.lm_head.weight[she] - model.lm_head.weight[he]
        mlp.down_proj.weight[:, CAUSING] = 2 * written / written.norm()
        mlp.down_proj.weight[:, REACTING] = 30 * mlp.down_proj.weight[:, REACTING].sign() / 32**0.5
    return Edited(model)
