"""What the number type costs: a bf16 model with ``compute_dtype`` auto, beside the same loaded in float32.

    python benchmarks/number_types.py [MODEL] [--windows N] [--rounds N]

Each measurement is a process of its own, in turn: a calibrated prune, the metrics of bias, and the importance
of layers. Times are of the processor, loading and writing left out of none; the ratio is of the shortest.
Memory is the peak of a process's private memory, with ``checkpoint`` (bf16 throughout) as the third side for
layer importance.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from sides import demo_model, environment_of, manual_text, processor

TASKS = {"calibrated prune": 1.10, "bias metrics": 1.15, "layer importance": 1.10}
SIDES = {
    "auto": {"dtype": "auto", "compute_dtype": "auto"},
    "float32": {"dtype": "float32", "compute_dtype": "auto"},
    "checkpoint": {"dtype": "auto", "compute_dtype": "checkpoint"},
}


def main() -> None:
    """Run all sides and print ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path, help="a bf16 model folder (default: the demo model)")
    parser.add_argument("--windows", type=int, default=8, help="calibration windows of 256 tokens")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        task, side, text = options.one
        print(json.dumps(_measure(task, side, options.model, Path(text), options.windows)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        model = demo_model(options.model, Path(scratch, "model"))
        text = manual_text(None, Path(scratch))
        print(processor())
        for task, bar in TASKS.items():
            sides = [s for s in SIDES if s != "checkpoint" or task == "layer importance"]
            _compare(task, bar, sides, model, text, options)


def _compare(
    task: str, bar: float, sides: list[str], model: Path, text: Path, options: argparse.Namespace
) -> None:
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for number in range(options.rounds):
        for side in sides:
            if number == 0 or side != "checkpoint":
                found[side].append(_in_a_process(task, side, model, text, options.windows))
    seconds = {side: min(run["seconds"] for run in runs) for side, runs in found.items()}
    computed = found["auto"][0]["compute_dtype"]
    ratio = seconds["auto"] / seconds["float32"]
    print(f"{task}: auto (computed in {computed}) / float32 = {ratio:.2f} (at most {bar:.2f})")
    for side, runs in found.items():
        memory = max(run["private"] for run in runs) / 1e6
        print(f"  {side:10} {seconds[side]:7.1f} processor seconds, {memory:6.0f} MB private at the peak")


def _in_a_process(task: str, side: str, model: Path, text: Path, windows: int) -> dict[str, Any]:
    command = [sys.executable, __file__, str(model), "--windows", str(windows)]
    command += ["--one", task, side, str(text)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env=environment_of(sys.executable)
    )
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def _measure(task: str, side: str, model: Path, text: Path, windows: int) -> dict[str, Any]:
    from optipfair_engine.options.bias import BiasOptions
    from optipfair_engine.options.prune import PruneOptions
    from optipfair_engine.workflow import bias_checkpoint, importance_checkpoint, prune_checkpoint

    texts = [text.read_text(encoding="utf-8")]
    asked: dict[str, Any] = SIDES[side]
    watch = _Watch()
    start = time.process_time()
    with tempfile.TemporaryDirectory() as scratch:
        output = Path(scratch, "out")
        if task == "calibrated prune":
            cut = {"num_samples": windows, "max_length": 256, "batch_size": 4}
            wanted = PruneOptions(
                preset="recommended", pruning_percentage=20, verify="structure", **cut, **asked
            )
            metrics = prune_checkpoint(model, output, wanted, calibration_texts=texts)
        elif task == "bias metrics":
            metrics = bias_checkpoint(model, output, BiasOptions(visualization_types=[], **asked))
        else:
            metrics = importance_checkpoint(
                model, None, texts=texts, num_samples=windows, max_length=256, **asked
            )
    seconds = time.process_time() - start
    return {"seconds": seconds, "private": watch.stop(), "compute_dtype": metrics["compute_dtype"]}


class _Watch:
    """The peak of this process's private memory, looked at twenty times a second."""

    def __init__(self) -> None:
        self._peak, self._done = 0, threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def stop(self) -> int:
        self._done.set()
        self._thread.join()
        return self._peak

    def _look(self) -> None:
        while not self._done.wait(0.05):
            self._peak = max(self._peak, _private_bytes())


def _private_bytes() -> int:
    try:
        pages = Path(f"/proc/{os.getpid()}/statm").read_text(encoding="ascii").split()
    except OSError:  # no Linux: the peak of all that was resident
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return (int(pages[1]) - int(pages[2])) * resource.getpagesize()


if __name__ == "__main__":
    main()
