"""Streamed static pruning of a large random checkpoint: beside the published optipfair, and beside ``cp -r``.

    python benchmarks/streaming_vs_optipfair.py [--shape 1b] [--rounds 3] [--peer-python PYTHON]
    python benchmarks/streaming_vs_optipfair.py --shape 7b --skip-peer --rounds 1

The checkpoint has the shape of Llama-3.2-1B (2.4 GB in three shards) or of Llama-7B (14 GB in five), bf16,
random weights; the page cache is warmed before each measurement. Each round runs, one after the other and
each in a new process:

* the published library: load, MAW, save (its imports counted);
* ``cp -r`` of the folder;
* ``optipfair prune``: the whole command, with SHA-256 of every file and the check of the structure;
* the same with ``--verify none`` (which only leaves out that check);
* ``prune_checkpoint`` in a process that has imported everything already, timed without its imports.

Reported are the medians of the rounds: wall time, processor time, and the peak of private memory (RssAnon,
sampled every 5 ms: mapped file pages don't count). Exit code 1 if an aim of the project is missed.
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
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sides import COMMAND, PEER, environment_of, peer_python, processor

GB, MB = 1e9, 1e6

SHAPES: Mapping[str, Mapping[str, int]] = {
    "tiny": {"hidden": 64, "inner": 256, "layers": 4, "heads": 4, "groups": 2, "vocab": 1000, "shards": 3},
    "1b": {
        "hidden": 2048,
        "inner": 8192,
        "layers": 16,
        "heads": 32,
        "groups": 8,
        "vocab": 128256,
        "shards": 3,
    },
    "7b": {
        "hidden": 4096,
        "inner": 11008,
        "layers": 32,
        "heads": 32,
        "groups": 32,
        "vocab": 32000,
        "shards": 5,
    },
}
TIED = ("1b", "tiny")

PEER_CODE = """
import sys, torch
from transformers import AutoModelForCausalLM
from optipfair import prune_model
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype="auto")
model = prune_model(
    model, neuron_selection_method="MAW", pruning_percentage=float(sys.argv[3]), show_progress=False
)
model.save_pretrained(sys.argv[2], max_shard_size="5GB")
"""

OUR_WARM_CODE = """
import sys, time
from pathlib import Path
import transformers.models.llama.modeling_llama
from optipfair_engine.options.prune import PruneOptions
from optipfair_engine.workflow import prune_checkpoint
import optipfair_engine.streaming, optipfair_engine.checkpoints.verify
import optipfair_engine.pruning.planner, optipfair_engine.plans.apply
start = time.perf_counter()
options = PruneOptions(pruning_percentage=float(sys.argv[3]), verify="structure")
prune_checkpoint(Path(sys.argv[1]), Path(sys.argv[2]), options)
print(time.perf_counter() - start)
"""


@dataclass(frozen=True)
class Run:
    """One process: seconds of wall and processor time, and its peak of private memory in bytes."""

    wall: float
    cpu: float
    private: float


def make_checkpoint(folder: Path, shape: str, layers: int | None = None) -> None:
    """A random bf16 checkpoint, shard by shard; ``layers`` makes it shallower than its shape."""
    import torch
    from safetensors.torch import save_file

    sizes = {**SHAPES[shape], **({} if layers is None else {"layers": layers})}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(_config(sizes, tied=shape in TIED), indent=2))
    generator = torch.Generator().manual_seed(0)
    # slices at different offsets of one pool: as random as pruning needs, in a tenth of the time
    pool = (torch.randn(100_000_000 if shape != "tiny" else 200_000, generator=generator) * 0.02).bfloat16()
    tensors = _tensors(sizes, tied=shape in TIED)
    total = sum(2 * rows * columns for rows, columns in tensors.values())
    shard, held, weights, index = 1, 0, {}, {}
    for number, (name, (rows, columns)) in enumerate(tensors.items()):
        start = number * 7919 % 100_003
        count = rows * columns
        flat = (
            pool[start : start + count]
            if start + count <= len(pool)
            else pool.repeat(count // len(pool) + 2)[start:]
        )
        weights[name] = (
            torch.ones(columns).bfloat16() if rows == 1 else flat[:count].reshape(rows, columns)
        ).clone()
        held += 2 * count
        index[name] = f"model-{shard:05d}-of-{sizes['shards']:05d}.safetensors"
        if held * sizes["shards"] >= total * shard or number == len(tensors) - 1:
            save_file(weights, folder / index[name], metadata={"format": "pt"})
            shard, weights = min(shard + 1, sizes["shards"]), {}
    text = json.dumps({"metadata": {"total_size": total}, "weight_map": index}, indent=2)
    (folder / "model.safetensors.index.json").write_text(text)


def _config(sizes: Mapping[str, int], *, tied: bool) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": sizes["hidden"],
        "intermediate_size": sizes["inner"],
        "num_hidden_layers": sizes["layers"],
        "num_attention_heads": sizes["heads"],
        "num_key_value_heads": sizes["groups"],
        "head_dim": sizes["hidden"] // sizes["heads"],
        "vocab_size": sizes["vocab"],
        "tie_word_embeddings": tied,
        "max_position_embeddings": 4096,
        "dtype": "bfloat16",
    }


def _tensors(sizes: Mapping[str, int], *, tied: bool) -> dict[str, tuple[int, int]]:
    hidden, inner = sizes["hidden"], sizes["inner"]
    keys = hidden // sizes["heads"] * sizes["groups"]
    found = {"model.embed_tokens.weight": (sizes["vocab"], hidden)}
    parts = {
        "input_layernorm": (1, hidden), "post_attention_layernorm": (1, hidden),
        "self_attn.q_proj": (hidden, hidden), "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden), "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden), "mlp.down_proj": (hidden, inner),
    }  # fmt: skip
    for layer in range(sizes["layers"]):
        found |= {f"model.layers.{layer}.{name}.weight": size for name, size in parts.items()}
    found["model.norm.weight"] = (1, hidden)
    return found if tied else found | {"lm_head.weight": (sizes["vocab"], hidden)}


def warm(folder: Path) -> None:
    """Bring a folder into the page cache."""
    for file in folder.iterdir():
        with file.open("rb", buffering=0) as stream:
            while stream.read(1 << 24):
                pass


def measure(command: list[str], output: Path) -> tuple[Run, str]:
    """Run a command in a new process, its output folder removed before."""
    shutil.rmtree(output, ignore_errors=True)
    start, peak = time.perf_counter(), 0
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment_of(command[0])
    )
    while True:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            break
        peak = max(peak, _private(process.pid))
        time.sleep(0.005)
    wall = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    said, errors = process.communicate()
    if process.returncode:
        raise SystemExit(f"{command} failed:\n{errors}")
    return Run(wall, usage.ru_utime + usage.ru_stime, peak), said


def _private(pid: int) -> int:
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def one_round(source: Path, output: Path, percentage: float, peer: str | None) -> dict[str, Run]:
    """Every contender once."""
    arguments = [str(source), str(output), str(percentage)]
    options = zip(("--model-path", "--output-path", "--pruning-percentage"), arguments, strict=True)
    ours = [str(COMMAND), "prune", *(word for pair in options for word in pair), "--quiet", "--verify"]
    commands = {
        "cp -r": ["cp", "-r", str(source), str(output)],
        "optipfair prune": [*ours, "structure"],
        "optipfair prune --verify none": [*ours, "none"],
        "without imports": [sys.executable, "-c", OUR_WARM_CODE, *arguments],
    }
    if peer:
        commands = {PEER: [peer, "-c", PEER_CODE, *arguments], **commands}
    found = {}
    for name, command in commands.items():
        warm(source)
        run, said = measure(command, output)
        found[name] = run if name != "without imports" else Run(float(said), run.cpu, run.private)
    shutil.rmtree(output)
    return found


def show(rounds: list[dict[str, Run]]) -> dict[str, Run]:
    """Print the medians; returns them."""
    print(f"{'':32}{'wall s':>8}{'cpu s':>8}{'private MB':>12}")
    medians = {}
    for name in rounds[0]:
        runs = [found[name] for found in rounds]
        medians[name] = Run(
            *(statistics.median(getattr(run, part) for run in runs) for part in vars(runs[0]))
        )
        run = medians[name]
        print(f"{name:32}{run.wall:8.2f}{run.cpu:8.2f}{run.private / MB:12.0f}")
    return medians


def check(medians: Mapping[str, Run]) -> bool:
    """Compare with the project's aims; prints each."""
    ours, copied, warm_run = medians["optipfair prune"], medians["cp -r"], medians["without imports"]
    aims = {
        f"without imports, at most 4 × cp -r: {warm_run.wall / copied.wall:.2f} ×": warm_run.wall
        <= 4 * copied.wall,
        f"private memory under 400 MB: {ours.private / MB:.0f} MB": ours.private < 400 * MB,
    }
    wanted = {"optipfair prune": 4, "optipfair prune --verify none": 5}
    for name, least in wanted.items() if PEER in medians else ():
        times = medians[PEER].wall / medians[name].wall
        aims[f"{name}, the whole command, at least {least} × faster than {PEER}: {times:.2f} ×"] = (
            times >= least
        )
    for text, held in aims.items():
        print(f"{'held  ' if held else 'MISSED'}  {text}")
    return all(aims.values())


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=sorted(SHAPES), default="1b")
    parser.add_argument("--layers", type=int, help="fewer layers: private memory doesn't depend on them")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--percentage", type=float, default=20)
    parser.add_argument("--peer-python", help="a Python that has the published optipfair")
    parser.add_argument("--skip-peer", action="store_true")
    parser.add_argument("--keep", type=Path, help="make the checkpoint there, or use the one that is there")
    options = parser.parse_args()
    print(processor())
    with tempfile.TemporaryDirectory(
        prefix="optipfair-bench-", dir=options.keep and options.keep.parent
    ) as scratch:
        folder = Path(scratch)
        source = options.keep or folder / "source"
        if not (source / "config.json").exists():
            make_checkpoint(source, options.shape, options.layers)
        peer = None if options.skip_peer else peer_python(options.peer_python, folder / "peer")
        rounds = [
            one_round(source, folder / "output", options.percentage, peer) for _ in range(options.rounds)
        ]
        return 0 if check(show(rounds)) else 1


if __name__ == "__main__":
    raise SystemExit(main())
