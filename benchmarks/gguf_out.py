"""Do GGUF files say in llama.cpp what the checkpoint says in transformers, and how fast?

The demo model, dense and with unequal widths (a third of the neurons of every other layer removed), is
written as f16 with ``export_gguf`` and loaded by llama.cpp. Both programs are given the same WikiText-2
windows, one token after the other, and their choices of the next token are compared. transformers
computes in float32 on the f16-rounded weights. Speed is llama.cpp's own figure for both files, in turns.
Exits with 1 below 99 %.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from quality_texts import wikitext
from sides import processor

from optipfair_engine.checkpoints import load_pruned, load_tokenizer
from optipfair_engine.checkpoints.demo import write_demo_model
from optipfair_engine.options.prune import PruneOptions
from optipfair_engine.workflow import prune_checkpoint
from optipfair_engine.workflow.export import export_gguf
from tests.llama_cpp import llama_cpp

_WINDOW, _AIM = 250, 0.99


def main() -> int:
    """Run it; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, help="a safetensors folder; default: the demo model")
    parser.add_argument("--tokens", type=int, default=2000)
    parser.add_argument("--generate", type=int, default=64, help="tokens of one round of the speed")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    print(processor())
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        dense = options.model or write_demo_model(work / "demo")
        folders = {"dense": dense, "unequal": work / "unequal"}
        layers = range(0, load_pruned(dense).config.num_hidden_layers, 2)
        asked = PruneOptions(pruning_percentage=33, layer_indices=tuple(layers), verify="structure")
        prune_checkpoint(dense, folders["unequal"], asked)
        windows = _windows(dense, options.tokens)
        shares, speeds = {}, {}
        for name, folder in folders.items():
            file = work / f"{name}.gguf"
            made = export_gguf(folder, file)
            shares[name] = _agreement(folder, file, windows)
            print(
                f"{name}: architecture {made['architecture']}, {made['output_bytes'] / 1e6:.0f} MB",
                flush=True,
            )
        for _ in range(options.rounds):
            for name in folders:
                with llama_cpp(work / f"{name}.gguf") as running:
                    speed = running.tokens_per_second(windows[0][:32], options.generate)
                speeds.setdefault(name, []).append(speed)
    for name, share in shares.items():
        print(
            f"{name}: {share:.2%} of {sum(map(len, windows))} next tokens agree; "
            f"{median(speeds[name]):.1f} tokens/s"
        )
    print(f"unequal / dense: {median(speeds['unequal']) / median(speeds['dense']):.2f} times the speed")
    return 0 if min(shares.values()) >= _AIM else 1


def _windows(model: Path, count: int) -> list[list[int]]:
    tokenizer: Any = load_tokenizer(model)
    ids = tokenizer(wikitext("test")[: count * 12])["input_ids"][:count]
    return [ids[start : start + _WINDOW] for start in range(0, len(ids), _WINDOW)]


def _agreement(folder: Path, file: Path, windows: list[list[int]]) -> float:
    """The share of positions at which llama.cpp chooses the token that transformers chooses."""
    model = load_pruned(folder, dtype="float16").float().eval()
    end = model.config.eos_token_id
    same = 0
    with llama_cpp(file) as running:
        for ids in windows:
            with torch.no_grad():
                logits = model(torch.tensor([ids])).logits[0]
            logits[:, end] = -torch.inf  # llama.cpp is told not to end
            choices = logits.argmax(-1).tolist()
            same += sum(running.next_token(ids[: i + 1]) == choice for i, choice in enumerate(choices))
    return same / sum(map(len, windows))


if __name__ == "__main__":
    sys.exit(main())
