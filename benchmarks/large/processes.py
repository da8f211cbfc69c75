"""Two processes of one thread each that share out a calibration, beside one process of two threads.

    python -m benchmarks.large.processes [--model FOLDER] [--windows 64] [--rounds 3] [--execution streamed]

Each round prunes the demo model (or ``--model``, a safetensors folder with a tokenizer) at 30 % of the
neurons, chosen by OBS and refitted, on the same windows of 512 tokens, with ``processes=1`` and then with
``processes=2``, each in a new process of two threads. Timed is the whole of ``prune_checkpoint`` without
imports, and of it the calibration, from the first call to the last layer's (or batch's) report; the ranks'
start is part of that. ``--last N`` prunes the last N layers alone: all layers are run, and fewer ordered.
Exit code 1 if the two keep different neurons.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sides import demo_model, environment_of, manual_text, processor

CODE = """
import json, sys, time, torch
from pathlib import Path
import transformers.models.llama.modeling_llama
from optipfair_engine.calibration import load_calibration_file
from optipfair_engine.checkpoints import load_tokenizer
from optipfair_engine.options.prune import PruneOptions
import optipfair_engine.workflow.prune.in_memory, optipfair_engine.workflow.prune.out_of_core
from optipfair_engine.workflow import prune_checkpoint
source, output, text = (Path(word) for word in sys.argv[1:4])
windows, processes, execution = int(sys.argv[4]), int(sys.argv[5]), sys.argv[6]
calibration = load_calibration_file(
    text, load_tokenizer(source), max_length=512, num_samples=windows, batch_size=8
)
options = PruneOptions(
    pruning_percentage=30, neuron_selection_method="OBS", compensation="least_squares",
    verify="structure", execution=execution, processes=processes,
    layer_indices=json.loads(sys.argv[7]),
)
seen, start = {}, time.perf_counter()
def report(stage, done, total, message):
    seen.setdefault(stage, [time.perf_counter()]).append(time.perf_counter())
prune_checkpoint(source, output, options, calibration_texts=calibration, report=report)
whole = time.perf_counter() - start
# in memory, loading comes first
began = seen["load"][-1] if "load" in seen else start
print(json.dumps({"whole": whole, "calibration": seen["calibrate"][-1] - began}))
"""


def run(source: Path, output: Path, text: Path, asked: list[str]) -> dict[str, float]:
    """Seconds of one prune, whole and of its calibration."""
    command = [sys.executable, "-c", CODE, str(source), str(output), str(text), *asked]
    environment = {**environment_of(sys.executable), "OMP_NUM_THREADS": "2"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def kept(output: Path) -> object:
    return json.loads((output / "plan.json").read_text(encoding="utf-8"))["kept_neurons"]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path)
    parser.add_argument("--text", type=Path, help="calibration text; Python's own manual unless given")
    parser.add_argument("--windows", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--last", type=int, help="how many of the last layers are pruned; all unless given")
    parser.add_argument("--execution", choices=("memory", "streamed"), default="streamed")
    options = parser.parse_args()
    print(processor(), f"load {os.getloadavg()[0]:.1f}", sep="; ")
    rounds: list[dict[int, dict[str, float]]] = []
    same = True
    with tempfile.TemporaryDirectory(prefix="optipfair-bench-") as scratch:
        folder = Path(scratch)
        source, text = demo_model(options.model, folder / "source"), manual_text(options.text, folder)
        count = json.loads((source / "config.json").read_text(encoding="utf-8"))["num_hidden_layers"]
        chosen = None if options.last is None else list(range(count - options.last, count))
        for number in range(options.rounds):
            found = {}
            for processes in (1, 2):
                output = folder / f"{number}-{processes}"
                asked = [str(options.windows), str(processes), options.execution, json.dumps(chosen)]
                found[processes] = run(source, output, text, asked)
            same = same and kept(folder / f"{number}-1") == kept(folder / f"{number}-2")
            rounds.append(found)
    for part in ("calibration", "whole"):
        one, two = ([found[count][part] for found in rounds] for count in (1, 2))
        ratio = statistics.median(b / a for a, b in zip(one, two, strict=True))
        print(
            f"{part:12} one process {statistics.median(one):6.1f} s, two {statistics.median(two):6.1f} s,"
            f" two take {ratio:.2f} ×"
        )
    print("the same neurons stay" if same else "DIFFERENT neurons stay")
    return 0 if same else 1


if __name__ == "__main__":
    raise SystemExit(main())
