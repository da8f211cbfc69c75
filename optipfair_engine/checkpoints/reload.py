"""Logits of saved checkpoints, computed by a process that never held the models.

``python -m optipfair_engine.checkpoints.reload request.json answer.safetensors`` reads
``{"items": [{"folder", "token_ids", "attention"}], "threads", "device"}`` and writes one tensor per item,
named by its number. ``logits_of`` does one item, for a caller that has a fresh process of its own (a
preloaded fork server).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from optipfair_engine.checkpoints.loading import load_pruned


def logits_of(
    folder: Path, token_ids: Sequence[Sequence[int]], *, device: str = "cpu", attention: str | None = None
) -> Tensor:
    """The logits [batch, tokens, vocabulary] of a saved model, on the CPU, in its own dtype."""
    model = load_pruned(folder, device=device)
    if attention is not None and attention != model.config._attn_implementation:
        model.set_attn_implementation(attention)
    return model_logits(model, token_ids)


def model_logits(model: PreTrainedModel, token_ids: Sequence[Sequence[int]]) -> Tensor:
    """The same of a model in memory, its train/eval mode put back; without a head, the hidden states."""
    was_training = model.training
    model.eval()
    ids = torch.tensor(token_ids, device=model.device)
    inputs = {"input_ids": ids}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids
    try:
        with torch.no_grad():
            output = model(**inputs)
    finally:
        model.train(was_training)
    result: Tensor = output.logits if hasattr(output, "logits") else output.last_hidden_state
    return result.detach().cpu()


def main(request: str, answer: str) -> None:
    """Answer a request file."""
    from safetensors.torch import save_file

    asked = json.loads(Path(request).read_text(encoding="utf-8"))
    torch.set_num_threads(asked["threads"])
    results = {
        str(number): logits_of(
            Path(item["folder"]), item["token_ids"], device=asked["device"], attention=item["attention"]
        ).contiguous()
        for number, item in enumerate(asked["items"])
    }
    save_file(results, answer)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
