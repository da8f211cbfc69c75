"""The published optipfair and this engine side by side: one model, the same 7 prompt pairs, one machine.

    python benchmarks/bias_vs_optipfair.py [--model FOLDER] [--peer-python PYTHON] [--output results.json]

Each measurement runs in a process of its own, one after the other. Without ``--peer-python`` a virtual
environment with ``optipfair[viz]`` is made (it needs a package index). Reported: forward passes, figures,
their least pixel size, seconds of everything and of the metrics alone, seconds of one bare batched forward
pass, and peak memory with 7 and with 700 pairs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from sides import demo_model, environment_of, peer_python, processor

from optipfair_engine.bias.defaults import DEFAULT_PROMPT_PAIRS

KINDS = ("mean_diff", "heatmap", "pca")

PRELUDE = """
import contextlib, io, json, os, resource, sys, time
os.environ["MPLBACKEND"] = "Agg"
import torch, transformers
from transformers import AutoModelForCausalLM, AutoTokenizer
torch.set_num_threads(int(sys.argv[2]))
transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32).eval()
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
pairs = [tuple(pair) for pair in json.loads(sys.argv[3])]
forwards = []
layers = model.model.layers if hasattr(model, "model") else model.transformer.h
layers[0].register_forward_hook(lambda *_: forwards.append(1))
def cpu():
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)
"""

PEER = """
import logging
from optipfair.bias import visualize_bias
logging.disable(logging.CRITICAL)
"""
OURS = """
from optipfair_engine.bias import visualize_bias
"""

WHOLE = """
start, busy = time.perf_counter(), cpu()
with contextlib.redirect_stdout(io.StringIO()):
    visualize_bias(model, tokenizer, prompt_pairs=pairs, output_dir=sys.argv[4], show_progress=False)
seconds = time.perf_counter() - start
print(json.dumps({"seconds": seconds, "cpu": cpu() - busy, "forwards": len(forwards)}))
"""

METRICS = """
def measure():
    forwards.clear()
    start, busy = time.perf_counter(), cpu()
    with contextlib.redirect_stdout(io.StringIO()):
        visualize_bias(model, tokenizer, prompt_pairs=pairs, visualization_types=[], show_progress=False)
    return time.perf_counter() - start, cpu() - busy, len(forwards)
def bare():
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    batch = tokenizer([text for pair in pairs for text in pair], padding=True, return_tensors="pt")
    start, busy = time.perf_counter(), cpu()
    with torch.no_grad():
        model(**batch)
    return time.perf_counter() - start, cpu() - busy
measure(); bare()
runs = [(measure(), bare()) for _ in range(5)]
print(json.dumps({"metrics": [r[0] for r in runs], "bare": [r[1] for r in runs]}))
"""

MEMORY = """
# 700 different pairs of about the length of the 7
many = [tuple(f"{text} ({number})" for text in pair) for number in range(100) for pair in pairs]
visualize_bias(model, tokenizer, prompt_pairs=pairs, visualization_types=[], show_progress=False)
few = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
_, metrics = visualize_bias(model, tokenizer, prompt_pairs=many, visualization_types=[], show_progress=False)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"megabytes_7": few / 1024, "megabytes_700": after / 1024, "pairs": len(metrics)}))
"""


def run(python: str, code: str, *arguments: object) -> dict[str, Any]:
    command = [python, "-c", PRELUDE + code, *map(str, arguments)]
    finished = subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment_of(python)
    )
    if finished.returncode:
        raise SystemExit(f"{python}:\n{finished.stderr[-3000:]}")
    answer: dict[str, Any] = json.loads(finished.stdout.strip().splitlines()[-1])
    return answer


def pixel_sizes(folder: Path) -> dict[str, Any]:
    """Figures by kind: how many, and the least width and height."""
    found: dict[str, Any] = {}
    for kind in KINDS:
        sizes = [struct.unpack(">II", path.read_bytes()[16:24]) for path in folder.glob(f"{kind}_*.png")]
        least = (min(width for width, _ in sizes), min(height for _, height in sizes)) if sizes else None
        found[kind] = {"figures": len(sizes), "least_pixels": least}
    return found


def measure_library(python: str, imports: str, model: Path, threads: int, folder: Path) -> dict[str, Any]:
    pairs = json.dumps(DEFAULT_PROMPT_PAIRS)
    folder.mkdir()
    whole = run(python, imports + WHOLE, model, threads, pairs, folder)
    metrics = run(python, imports + METRICS, model, threads, pairs)
    medians = {
        name: [statistics.median(column) for column in zip(*metrics[name], strict=True)][:2]
        for name in ("metrics", "bare")
    }
    return {
        "everything": {
            "seconds": whole["seconds"],
            "cpu_seconds": whole["cpu"],
            "forwards": whole["forwards"],
        },
        "figures": pixel_sizes(folder),
        "metrics_alone": {**_times(medians["metrics"]), "forwards": metrics["metrics"][0][2]},
        "bare_batched_forward": _times(medians["bare"]),
    }


def _times(pair: list[float]) -> dict[str, float]:
    return {"seconds": pair[0], "cpu_seconds": pair[1]}


def ratios_of(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """By wall clock, and by processor time, which says more on a busy machine."""
    memory = ours["memory"]["megabytes_700"] / ours["memory"]["megabytes_7"]
    return {
        "memory_700_over_7": memory,
        **{
            clock: {
                "everything_times_faster": theirs["everything"][clock] / ours["everything"][clock],
                "metrics_times_faster": theirs["metrics_alone"][clock] / ours["metrics_alone"][clock],
                "metrics_over_bare_forward": ours["metrics_alone"][clock]
                / ours["bare_batched_forward"][clock],
            }
            for clock in ("seconds", "cpu_seconds")
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, help="model folder; the demo model is made unless given")
    parser.add_argument("--peer-python", help="a Python that has the published library with its viz extra")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    print(processor())
    with tempfile.TemporaryDirectory() as scratch:
        folder, here = Path(scratch), sys.executable
        peer = peer_python(options.peer_python, folder / "venv")
        model = demo_model(options.model, folder / "SmolLM2-135M-Instruct")
        ours = measure_library(here, OURS, model, options.threads, folder / "ours")
        theirs = measure_library(peer, PEER, model, options.threads, folder / "peer")
        ours["memory"] = run(here, OURS + MEMORY, model, options.threads, json.dumps(DEFAULT_PROMPT_PAIRS))
    ratios = ratios_of(ours, theirs)
    results = {"model": model.name, "optipfair": theirs, "engine": ours, "ratios": ratios}
    print(json.dumps(results, indent=2))
    if options.output is not None:
        options.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
