"""What layer importance costs beside bare forward passes of the same batches, and beside the published one.

    python benchmarks/layer_importance.py [--model FOLDER] [--text TEXT.txt] [--windows 8] [--tokens 512]
        [--rounds 9] [--peer-python PYTHON]

Rounds alternate, so that a busy machine slows all sides; medians of processor time are compared. Exit code 1
above 1.08 times the bare passes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from sides import PEER, demo_model, environment_of, manual_text, peer_python, processor

LIMIT = 1.08

PEER_CODE = """
import json, sys, time, torch
from transformers import AutoModelForCausalLM
from optipfair import analyze_layer_importance
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype="auto").eval()
batches = [{"input_ids": ids, "attention_mask": torch.ones_like(ids)} for ids in torch.load(sys.argv[2])]
rounds = []
for _ in range(int(sys.argv[3])):
    start = time.process_time()
    with torch.no_grad():
        for batch in batches:
            model(**batch)
    middle = time.process_time()
    analyze_layer_importance(model, batches, show_progress=False)
    rounds.append((middle - start, time.process_time() - middle))
print(json.dumps(rounds))
"""


def main() -> int:
    """Measure and print; the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, help="model folder; the demo model is made unless given")
    parser.add_argument("--text", type=Path, help="calibration text; Python's own manual unless given")
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--peer-python", help=f"a Python that has {PEER}; default: a new environment")
    options = parser.parse_args()
    print(processor())
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        peer = peer_python(options.peer_python, folder / "peer")
        return measure(demo_model(options.model, folder / "model"), peer, folder, options)


def measure(model: Path, peer: str, scratch: Path, options: argparse.Namespace) -> int:
    """Both libraries on the same batches; the exit code."""
    import torch

    from optipfair_engine import load_model, load_tokenizer
    from optipfair_engine.calibration import calibration_from_windows, windows_from_text

    tokenizer = load_tokenizer(model)
    windows = windows_from_text(
        tokenizer, manual_text(options.text, scratch).read_text(), options.tokens, options.windows
    )
    batches = list(calibration_from_windows(windows, batch_size=2).batches)
    ratio = show("optipfair_engine", ours(load_model(model), batches, options.rounds))
    file = scratch / "batches.pt"
    torch.save([batch["input_ids"] for batch in batches], file)
    show(PEER, theirs(peer, model, file, options.rounds))
    return 0 if ratio <= LIMIT else 1


def ours(model: object, batches: list[object], rounds: int) -> list[tuple[float, float]]:
    """Processor seconds of (bare passes, layer importance), by round."""
    import torch

    from optipfair_engine import analyze_layer_importance

    def bare() -> None:
        with torch.no_grad():
            for batch in batches:
                model(**batch)  # type: ignore[operator]

    def importance() -> None:
        analyze_layer_importance(model, batches, show_progress=False)  # type: ignore[arg-type]

    bare()
    return [(seconds(bare), seconds(importance)) for _ in range(rounds)]


def seconds(work: Callable[[], None]) -> float:
    """Processor time: what other programs do meanwhile doesn't count."""
    start = time.process_time()
    work()
    return time.process_time() - start


def theirs(python: str, model: Path, batches: Path, rounds: int) -> list[tuple[float, float]]:
    """The same, of the published library in its own environment."""
    command = [python, "-c", PEER_CODE, str(model), str(batches), str(rounds)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment_of(python))
    found: list[tuple[float, float]] = json.loads(done.stdout.splitlines()[-1])
    return found


def show(name: str, rounds: list[tuple[float, float]]) -> float:
    """Print the medians; their ratio."""
    bare, importance = (statistics.median(times) for times in zip(*rounds, strict=True))
    print(f"{name:18} bare {bare:.2f} s, importance {importance:.2f} s: {importance / bare:.3f} times")
    return importance / bare


if __name__ == "__main__":
    sys.exit(main())
