"""Run by ``quality.py`` in the environment of published optipfair: its pruning, on the same windows."""

from __future__ import annotations

import copy
import json
import math
import sys
from pathlib import Path
from typing import Any

import torch
from optipfair import prune_model
from torch.utils.data import DataLoader, TensorDataset
from transformers import AutoModelForCausalLM


def perplexity(model: Any, windows: list[list[int]]) -> float:
    """The protocol of ``quality.py``."""
    loss, tokens = 0.0, 0
    model.eval()
    with torch.no_grad():
        for window in windows:
            ids = torch.tensor(window)[None]
            logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
            loss += float(torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum"))
            tokens += ids.shape[1] - 1
    return math.exp(min(loss / tokens, 700))


def main() -> None:
    """Print ``name value`` lines."""
    job = json.loads(Path(sys.argv[1]).read_text())
    dense = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.bfloat16)
    ids = torch.tensor(job["calibration"])
    loader = DataLoader(TensorDataset(ids, torch.ones_like(ids)), batch_size=4)
    runs: dict[str, dict[str, Any]] = {
        "peer MAW 30": {"pruning_percentage": 30},
        "peer data-driven MAW 30": {"pruning_percentage": 30, "dataloader": loader},
        "peer depth last 2": {"pruning_type": "DEPTH", "num_layers_to_remove": 2, "pruning_percentage": None},
        "peer MAW 10": {"pruning_percentage": 10},
    }
    for name, options in runs.items():
        model = prune_model(copy.deepcopy(dense), show_progress=False, **options)
        print(name, perplexity(model, job["test"]), flush=True)


if __name__ == "__main__":
    main()
