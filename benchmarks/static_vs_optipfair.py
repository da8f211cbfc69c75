"""Static MAW pruning beside the published optipfair: same neurons, weights equal bit by bit, and times.

    python benchmarks/static_vs_optipfair.py [--model FOLDER] [--percentage 20] [--rounds 3]
        [--peer-python PYTHON]

The published library is installed into a throw-away environment (or taken from ``--peer-python``), never
into ours. Each round runs both, one after the other, in fresh processes that load the checkpoint, prune it
and save the result; the times are of the whole process and of its parts ("cpu": processor time).

Where neurons at the edge have *equal* scores (common in bf16), ours keeps the lowest indices, the published
library whichever ``torch.topk`` returns, and ours with ``--tie-break topk`` the same ones. Exit code 1 if
that last result differs from the published one in any bit, the first in more than such exchanges, or a kept
weight is not the source's.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from sides import COMMAND, PEER, demo_model, environment_of, peer_python, processor

PUBLISHED, OURS, CHECKED, IN_MEMORY = "optipfair 0.4.2", "ours", "ours, checked", "ours, in memory"

PEER_CODE = """
import json, sys, time
start = time.perf_counter()
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from optipfair import prune_model
imported = time.perf_counter()
source, output, percentage = sys.argv[1], sys.argv[2], float(sys.argv[3])
try:
    model = AutoModelForCausalLM.from_pretrained(source, dtype="auto")
except TypeError:
    model = AutoModelForCausalLM.from_pretrained(source, torch_dtype="auto")
tokenizer = AutoTokenizer.from_pretrained(source)
loaded = time.perf_counter()
cpu = time.process_time()
pruned = prune_model(
    model, neuron_selection_method="MAW", pruning_percentage=percentage, show_progress=False
)
done = time.perf_counter()
cpu = time.process_time() - cpu
pruned.save_pretrained(output)
tokenizer.save_pretrained(output)
saved = time.perf_counter()
parts = {"import": imported - start, "load": loaded - imported, "prune": done - loaded}
parts |= {"prune cpu": cpu, "save": saved - done}
print(json.dumps(parts))
"""

OUR_IN_MEMORY = """
import json, sys, time
import torch
from optipfair_engine import load_model, prune_model
model = load_model(sys.argv[1])
percentage = float(sys.argv[3])
start, cpu = time.perf_counter(), time.process_time()
prune_model(model, neuron_selection_method="MAW", pruning_percentage=percentage, show_progress=False)
parts = {"prune": time.perf_counter() - start, "prune cpu": time.process_time() - cpu}
print(json.dumps(parts))
"""


def timed(*command: object) -> dict[str, float]:
    """Run a command; what it says of its parts (in a line of JSON), and the seconds of the whole."""
    words = list(map(str, command))
    start = time.perf_counter()
    done = subprocess.run(words, capture_output=True, text=True, env=environment_of(words[0]), check=False)
    whole = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(f"{command[0]} failed:\n{done.stderr}")
    parts = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {**(parts[-1] if parts else {}), "whole": whole}


def our_command(source: Path, output: Path, percentage: float, *more: str) -> list[object]:
    """The console script, as a user runs it."""
    shutil.rmtree(output, ignore_errors=True)
    return [
        COMMAND, "prune", "--model-path", source, "--output-path", output,
        "--method", "MAW", "--pruning-percentage", percentage, "--quiet", *more,
    ]  # fmt: skip


def tensors_of(folder: Path) -> dict[str, Any]:
    """All weights of a checkpoint by name."""
    from safetensors.torch import load_file

    found: dict[str, Any] = {}
    for file in sorted(folder.glob("model*.safetensors")):
        found |= load_file(file)
    return found


def differences(source: dict[str, Any], ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """What differs between two results: neurons (but for equal scores), and any bit of any weight."""
    kept = [kept_neurons(source, result) for result in (ours, theirs)]
    ties, unequal = 0, []
    for layer, (mine, other) in enumerate(zip(*kept, strict=True)):
        exchanged = set(mine) ^ set(other)
        scores = {float(maw_scores(source, layer)[index]) for index in exchanged}
        ties += len(exchanged) // 2
        if len(scores) > 1 or len(mine) != len(other):
            unequal.append(layer)
    wrong = [
        name
        for side, result in zip(kept, (ours, theirs), strict=True)
        for name in altered(source, result, side)
    ]
    return {"layers_with_other_neurons": unequal, "exchanged_among_equals": ties, "altered_tensors": wrong}


def kept_neurons(source: dict[str, Any], pruned: dict[str, Any]) -> list[list[int]]:
    """Which neurons each layer of a result kept, found by their gate and up rows."""
    layers = sum(name.endswith("mlp.up_proj.weight") for name in source)
    kept = []
    for layer in range(layers):
        rows = {row: index for index, row in enumerate(_rows(source, layer))}
        kept.append([rows.get(row, -1) for row in _rows(pruned, layer)])
    return kept


def _rows(tensors: dict[str, Any], layer: int) -> list[bytes]:
    import torch

    gate, up = (tensors[f"model.layers.{layer}.mlp.{name}_proj.weight"] for name in ("gate", "up"))
    return [row.numpy().tobytes() for row in torch.cat([gate, up], dim=1).contiguous().view(torch.uint8)]


def altered(source: dict[str, Any], pruned: dict[str, Any], kept: list[list[int]]) -> list[str]:
    """Tensors of a result that aren't the source's, cut to the kept neurons."""
    import torch

    wrong = sorted(source.keys() ^ pruned.keys())
    for name in source.keys() & pruned.keys():
        expected = source[name]
        if ".mlp." in name:
            indices = torch.tensor(kept[int(name.split(".")[2])])
            expected = expected.index_select(1 if "down_proj" in name else 0, indices)
        found = pruned[name]
        same_kind = found.dtype == expected.dtype and found.shape == expected.shape
        if not (same_kind and torch.equal(*(t.contiguous().view(torch.uint8) for t in (found, expected)))):
            wrong.append(name)
    return wrong


def maw_scores(source: dict[str, Any], layer: int) -> Any:
    """The published score, written out."""

    def ranges(name: str) -> Any:
        weight = source[f"model.layers.{layer}.mlp.{name}_proj.weight"].float()
        return weight.max(dim=1).values + weight.min(dim=1).values.abs()

    return ranges("gate") + ranges("up")


def main() -> int:
    """Run the comparison and print it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, help="model folder; the demo model is made unless given")
    parser.add_argument("--percentage", type=float, default=20)
    parser.add_argument("--peer-python", help=f"a Python that has {PEER}; default: a new environment")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="also write the result here")
    options = parser.parse_args()
    print(processor())
    with tempfile.TemporaryDirectory(prefix="optipfair-benchmark-") as scratch:
        folder = Path(scratch)
        peer = peer_python(options.peer_python, folder / "peer")
        model = demo_model(options.model, folder / "SmolLM2-135M-Instruct")
        result = compare(model, peer, options.percentage, options.rounds, folder)
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    return show(result)


def compare(model: Path, peer: str, percentage: float, rounds: int, folder: Path) -> dict[str, Any]:
    """Times of each side by round, and what differs between the results."""
    ours, theirs, as_topk = (folder / name for name in ("ours", "theirs", "as_topk"))
    same = ("--tie-break", "topk", "--verify", "none")
    times: dict[str, list[dict[str, float]]] = {name: [] for name in (PUBLISHED, OURS, CHECKED, IN_MEMORY)}
    for _ in range(rounds):
        shutil.rmtree(theirs, ignore_errors=True)
        times[PUBLISHED].append(timed(peer, "-c", PEER_CODE, model, theirs, percentage))
        times[OURS].append(timed(*our_command(model, as_topk, percentage, *same)))
        times[CHECKED].append(timed(*our_command(model, ours, percentage)))
        times[IN_MEMORY].append(timed(sys.executable, "-c", OUR_IN_MEMORY, model, "-", percentage))
    source, published = tensors_of(model), tensors_of(theirs)
    return {
        "model": model.name,
        "percentage": percentage,
        "times": times,
        "with_lower_index": differences(source, tensors_of(ours), published),
        "with_topk": differences(source, tensors_of(as_topk), published),
    }


def show(result: dict[str, Any]) -> int:
    """Print medians; the exit code."""
    print(f"{result['model']}, MAW {result['percentage']} %, median seconds:")
    medians: dict[str, dict[str, float]] = {}
    for name, runs in result["times"].items():
        medians[name] = {part: statistics.median(run[part] for run in runs) for part in runs[0]}
        print(f"  {name:18}", "  ".join(f"{part} {seconds:.2f}" for part, seconds in medians[name].items()))
    whole = medians[PUBLISHED]["whole"] / medians[OURS]["whole"]
    checked = medians[PUBLISHED]["whole"] / medians[CHECKED]["whole"]
    inside = medians[PUBLISHED]["prune"] / medians[IN_MEMORY]["prune"]
    print(
        f"checkpoint to checkpoint {whole:.2f}x as fast, by default (structure checked) {checked:.2f}x; "
        f"prune_model alone {inside:.2f}x"
    )
    wrong = 0
    for name in ("with_topk", "with_lower_index"):
        found = result[name]
        print(
            f"{name.replace('_', ' ')}: {found['exchanged_among_equals']} neurons exchanged for others of "
            f"the same score; layers with other neurons: {found['layers_with_other_neurons'] or 'none'}; "
            f"weights that are not the source's, bit by bit: {found['altered_tensors'] or 'none'}"
        )
        wrong += len(found["layers_with_other_neurons"]) + len(found["altered_tensors"])
    return 1 if wrong or result["with_topk"]["exchanged_among_equals"] else 0


if __name__ == "__main__":
    sys.exit(main())
