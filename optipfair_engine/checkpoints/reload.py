"""Logits of saved checkpoints, computed by a process that never held the models.

``python -m optipfair_engine.checkpoints.reload request.json answer.safetensors`` reads what ``write_request``
wrote, and writes one tensor per item, named by its number, which ``read_answer`` reads. ``main`` does the
same in a fresh process that somebody else has made (a preloaded fork server).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from optipfair_engine.checkpoints.loading import load_pruned
from optipfair_engine.computing.products import fast_products
from optipfair_engine.options.words import ComputeDtype


@dataclass(frozen=True)
class ReloadItem:
    """One folder to reload, what to feed it, and the attention and number type to compute with."""

    folder: Path
    token_ids: Sequence[Sequence[int]]
    attention: str | None = None
    compute_dtype: ComputeDtype = "checkpoint"


def write_request(path: Path, items: Sequence[ReloadItem], device: str) -> None:
    """Write down what is asked of the other process."""
    asked = [
        {
            "folder": str(item.folder),
            "token_ids": [list(row) for row in item.token_ids],
            "attention": item.attention,
            "compute_dtype": item.compute_dtype,
        }
        for item in items
    ]
    # sums are split by thread: another number of them could round differently
    request = {"items": asked, "threads": torch.get_num_threads(), "device": device}
    path.write_text(json.dumps(request), encoding="utf-8")


def read_answer(path: Path) -> list[Tensor]:
    """The logits of each item, in their order."""
    from safetensors.torch import load_file

    logits = load_file(path)
    return [logits[str(number)] for number in range(len(logits))]


def logits_of(
    folder: Path,
    token_ids: Sequence[Sequence[int]],
    *,
    device: str = "cpu",
    attention: str | None = None,
    compute_dtype: ComputeDtype = "checkpoint",
) -> Tensor:
    """The logits [batch, tokens, vocabulary] of a saved model, on the CPU, in the type computed in."""
    model = load_pruned(folder, device=device)
    if attention is not None and attention != model.config._attn_implementation:
        model.set_attn_implementation(attention)
    return model_logits(model, token_ids, compute_dtype)


def model_logits(
    model: PreTrainedModel, token_ids: Sequence[Sequence[int]], compute_dtype: ComputeDtype = "checkpoint"
) -> Tensor:
    """The same of a model in memory, its train/eval mode put back; without a head, the hidden states."""
    was_training = model.training
    model.eval()
    ids = torch.tensor(token_ids, device=model.device)
    inputs = {"input_ids": ids}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids
    try:
        with torch.no_grad(), fast_products(model, compute_dtype):
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
            Path(item["folder"]),
            item["token_ids"],
            device=asked["device"],
            attention=item["attention"],
            compute_dtype=item["compute_dtype"],
        ).contiguous()
        for number, item in enumerate(asked["items"])
    }
    save_file(results, answer)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
