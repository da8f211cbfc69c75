"""Static MAW pruning beside the published optipfair: same neurons, weights equal bit by bit, and times.

    python benchmarks/static_vs_optipfair.py MODEL [--percentage 20] [--peer-python PYTHON] [--rounds 3]

The published library is installed into a throw-away environment (or taken from ``--peer-python``), never
into ours. Each round runs both, one after the other, in fresh processes that load the checkpoint, prune it
and save the result; the times are of the whole process and of its parts ("cpu": processor time).

Where neurons at the edge have *equal* scores (common in bf16), ours keeps the lowest indices and the
published library whichever ``torch.topk`` returns: such exchanges are counted apart. Exit code 1 if neurons
differ in any other way, or a kept weight is not the source's, bit by bit.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

PEER = "optipfair==0.4.2"
ROOT = Path(__file__).resolve().parent.parent

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

OUR_CODE = """
import json, sys, time
start = time.perf_counter()
from pathlib import Path
from optipfair_engine.workflow import PruneOptions, prune_checkpoint
import torch
imported = time.perf_counter()
options = PruneOptions(pruning_percentage=float(sys.argv[3]), verify="structure")
prune_checkpoint(Path(sys.argv[1]), Path(sys.argv[2]), options)
print(json.dumps({"import": imported - start, "prune to checkpoint": time.perf_counter() - imported}))
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


def peer_python(folder: Path) -> str:
    """A Python with the published library, in an environment of its own, with our versions of all else."""
    uv, python = Path(sys.executable).with_name("uv"), folder / "bin" / "python"
    subprocess.run([str(uv), "venv", "-q", "--python", sys.executable, str(folder)], check=True)
    environment = dict(os.environ)
    install = [str(uv), "pip", "install", "-q", "--python", str(python), "-c", str(ROOT / "constraints.txt")]
    if "PIP_FIND_LINKS" in environment:
        environment.setdefault("UV_FIND_LINKS", environment["PIP_FIND_LINKS"])
    else:  # the plain build of torch for Linux brings gigabytes of CUDA
        install.append("--torch-backend=cpu")
    subprocess.run([*install, PEER, "torch", "transformers"], check=True, env=environment)
    return str(python)


def timed(python: str, code: str, *arguments: object) -> dict[str, float]:
    """Run code in a fresh process; what it says of its parts, and the whole."""
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    if python == sys.executable:
        environment["PYTHONPATH"] = str(ROOT)
    else:
        environment.pop("PYTHONPATH", None)
    start = time.perf_counter()
    done = subprocess.run(
        [python, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    whole = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(f"{python} failed:\n{done.stderr}")
    return {**json.loads(done.stdout.splitlines()[-1]), "whole": whole}


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
    parser.add_argument("model", type=Path)
    parser.add_argument("--percentage", type=float, default=20)
    parser.add_argument("--peer-python", help=f"a Python that has {PEER}; default: a new environment")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="also write the result here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="optipfair-benchmark-") as scratch:
        folder = Path(scratch)
        peer = options.peer_python or peer_python(folder / "peer")
        result = compare(options.model, peer, options.percentage, options.rounds, folder)
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    return show(result)


def compare(model: Path, peer: str, percentage: float, rounds: int, folder: Path) -> dict[str, Any]:
    """Times of each side by round, and what differs between the results."""
    times: dict[str, list[dict[str, float]]] = {"optipfair": [], "ours": [], "ours, in memory": []}
    for _ in range(rounds):
        for name in ("theirs", "ours"):
            shutil.rmtree(folder / name, ignore_errors=True)
        times["optipfair"].append(timed(peer, PEER_CODE, model, folder / "theirs", percentage))
        times["ours"].append(timed(sys.executable, OUR_CODE, model, folder / "ours", percentage))
        times["ours, in memory"].append(timed(sys.executable, OUR_IN_MEMORY, model, "-", percentage))
    return {
        "model": model.name,
        "percentage": percentage,
        "times": times,
        **differences(*(tensors_of(path) for path in (model, folder / "ours", folder / "theirs"))),
    }


def show(result: dict[str, Any]) -> int:
    """Print medians; the exit code."""
    print(f"{result['model']}, MAW {result['percentage']} %, median seconds:")
    medians: dict[str, dict[str, float]] = {}
    for name, runs in result["times"].items():
        medians[name] = {part: statistics.median(run[part] for run in runs) for part in runs[0]}
        print(f"  {name:18}", "  ".join(f"{part} {seconds:.2f}" for part, seconds in medians[name].items()))
    whole = medians["optipfair"]["whole"] / medians["ours"]["whole"]
    inside = medians["optipfair"]["prune"] / medians["ours, in memory"]["prune"]
    print(f"checkpoint to checkpoint {whole:.1f}x as fast, prune_model alone {inside:.1f}x as fast")
    print("layers with other neurons:", result["layers_with_other_neurons"] or "none")
    print("neurons exchanged for others of the same score:", result["exchanged_among_equals"])
    print("weights that are not the source's, bit by bit:", result["altered_tensors"] or "none")
    return 1 if result["layers_with_other_neurons"] or result["altered_tensors"] else 0


if __name__ == "__main__":
    sys.exit(main())
