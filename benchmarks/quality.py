"""Perplexity of pruned models: the recommended preset beside published optipfair, on one protocol.

Protocol: WikiText-2 test, 40 windows of 512 tokens that start at i·((N − 512)//39), no BOS, cross-entropy in
float32, averaged over tokens. Calibration: 128 windows of 512 tokens of the validation text, spread evenly;
for the mixture 96 of them and 32 of source code, tested on other files (named in ``quality_texts.py``).

    python benchmarks/quality.py                             # everything, about an hour on two cores
    python benchmarks/quality.py --only width depth          # parts; results are added to --output
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import quality_texts as texts  # noqa: E402
from sides import PEER, demo_model, environment_of, peer_python, processor  # noqa: E402

from optipfair_engine.architectures import locate  # noqa: E402
from optipfair_engine.calibration import CalibrationSet, calibration_from_windows, windows_from_text  # noqa: E402
from optipfair_engine.calibration.statistics import GramStatistics, gather_statistics  # noqa: E402
from optipfair_engine.checkpoints import load_model, load_tokenizer  # noqa: E402
from optipfair_engine.evaluation.healing import heal  # noqa: E402
from optipfair_engine.evaluation.perplexity import score_windows, text_windows  # noqa: E402
from optipfair_engine.options.prune import PruneOptions  # noqa: E402
from optipfair_engine.plans.apply import apply_plan  # noqa: E402
from optipfair_engine.plans.plan import PruningPlan  # noqa: E402
from optipfair_engine.plans.provenance import Provenance  # noqa: E402
from optipfair_engine.pruning.curves import replan  # noqa: E402
from optipfair_engine.pruning.depth.choice import depth_plan, least_important  # noqa: E402
from optipfair_engine.pruning.depth.neighbour_refit import refits_of_sets  # noqa: E402
from optipfair_engine.pruning.planner import make_calibrated_plan  # noqa: E402

PARTS = ("dense", "width", "depth", "attention", "mixture", "healing", "peer")

#: The perplexities that must not be exceeded (mixture: ratio to dense on code, and WikiText).
TARGETS = {
    "width 10": 26.4, "width 20": 28.4, "width 30": 30.8, "width 40": 34.1, "depth 2": 29.0, "depth 4": 33.0,
    "depth 6": 36.0, "attention third": 29.2, "mixture 30 code ratio": 1.36, "mixture 30": 32.3,
    "healed 30": 28.6,
}  # fmt: skip


class Bench:
    """The model, its texts, and what was measured so far."""

    def __init__(self, model: Path, output: Path, cache: Path) -> None:
        self.path, self.output, self.cache = model, output, cache
        self.tokenizer = load_tokenizer(model)
        self.model = load_model(model)
        self.test = text_windows(self.tokenizer, texts.wikitext("test"), 512, 40)
        self.results: dict[str, Any] = json.loads(output.read_text()) if output.exists() else {}
        cache.mkdir(parents=True, exist_ok=True)

    def windows(self, text: str, count: int) -> list[list[int]]:
        """Windows of 512 token ids."""
        return windows_from_text(self.tokenizer, text, 512, count)

    def wiki(self, count: int = 128) -> CalibrationSet:
        """The usual calibration."""
        windows = self.windows(texts.wikitext("valid"), count)
        return calibration_from_windows(windows, batch_size=4, source="WikiText-2 validation", num_texts=1)

    def mixture(self) -> CalibrationSet:
        """Two domains."""
        wiki, code = (
            self.windows(texts.wikitext("valid"), 96),
            self.windows(texts.code(texts.CODE_CALIBRATION), 32),
        )
        mixed = _interleave(wiki, code)
        return calibration_from_windows(mixed, batch_size=4, source="96 WikiText-2 + 32 code", num_texts=2)

    def statistics(self, name: str, calibration: CalibrationSet, site: str) -> GramStatistics:
        """Gram statistics, from the cache if they were gathered before."""
        file = self.cache / f"{name}.{site}.safetensors"
        if not file.exists():
            view = locate(self.model)
            gather_statistics(view, calibration, range(view.num_layers), site).save(file)  # type: ignore[arg-type]
        return GramStatistics.load(file)

    def score(self, name: str, model: Any, windows: list[list[int]] | None = None) -> float:
        """Measure and note a perplexity."""
        start = time.process_time()
        found = score_windows(model, windows or self.test).perplexity
        self.note(name, found, evaluation_cpu_seconds=round(time.process_time() - start, 1))
        return found

    def note(self, name: str, value: float, **more: Any) -> None:
        """Print a figure with its target, and keep it."""
        target = TARGETS.get(name)
        verdict = "" if target is None else f"  (target {target}: {'met' if value <= target else 'MISSED'})"
        print(f"{name:28s} {value:12.4f}{verdict}", flush=True)
        self.results[name] = {"value": value, "target": target, **more}
        self.output.write_text(json.dumps(self.results, indent=1))

    def prune(self, options: PruneOptions, calibration: CalibrationSet, stats: GramStatistics | None) -> Any:
        """A pruned copy of the model."""
        start = time.process_time()
        plan = make_calibrated_plan(locate(self.model), options, calibration, stats).plan
        print(f"  planned in {time.process_time() - start:.0f} CPU s: {_said(plan.provenance)}", flush=True)
        return apply_plan(self.model, plan)


def _interleave(wiki: list[list[int]], code: list[list[int]]) -> list[list[int]]:
    """Three of one, one of the other; the order changes, so that every eighth is of both in turn."""
    mixed: list[list[int]] = []
    for i in range(32):
        group = [*wiki[3 * i : 3 * i + 3], code[i]]
        mixed += group if i % 4 == 3 else [group[3], *group[:3]]
    return mixed


def _said(provenance: Provenance) -> str:
    names = ("allocation", "allocation_held_out_losses", "layer_selection_method", "head_selection")
    values = {name: getattr(provenance, name) for name in names}
    return ", ".join(f"{name} {value}" for name, value in values.items() if value is not None)


def dense(bench: Bench) -> None:
    bench.score("dense", bench.model)


def width(bench: Bench) -> None:
    stats = bench.statistics("wiki", bench.wiki(), "down_proj")
    plan = _recommended_30(bench)
    for percentage in (20, 40, 10, 30):
        # one calibration serves all ratios: no forward pass, no new order of removal
        options = PruneOptions(pruning_percentage=percentage, allocation="allocated")
        changed = plan if percentage == 30 else replan(locate(bench.model), options, plan, stats)
        bench.score(f"width {percentage}", apply_plan(bench.model, changed))


def _recommended_30(bench: Bench) -> PruningPlan:
    """The recommended plan at 30 %, from the cache if it was made before."""
    folder = bench.cache / "recommended_30"
    if not (folder / "plan.json").exists():
        calibration = bench.wiki()
        stats = bench.statistics("wiki", calibration, "down_proj")
        options = PruneOptions(preset="recommended", pruning_percentage=30, allocation="allocated")
        make_calibrated_plan(locate(bench.model), options, calibration, stats).plan.save(folder)
    plan = PruningPlan.load(folder)
    print(f"  plan at 30 %: {_said(plan.provenance)}", flush=True)
    return plan


def depth(bench: Bench) -> None:
    calibration, view = bench.wiki(), locate(bench.model)
    importance = bench.statistics("wiki", calibration, "o_proj").importance
    sets = {count: least_important(importance, count) for count in (2, 6, 4)}
    # as the preset does it, but one forward pass for the three of them
    refits = refits_of_sets(view, calibration.batches, list(sets.values()))
    for (count, removed), found in zip(sets.items(), refits, strict=True):
        names = {view.mlp(p).names["down"]: r.weight.to(bench.model.dtype) for p, r in found.items()}
        plan = replace(depth_plan(view, removed), weights=names)
        print(f"  layers {removed} go; refitted: {list(found)}", flush=True)
        bench.score(f"depth {count}", apply_plan(bench.model, plan))


def attention(bench: Bench) -> None:
    calibration = bench.wiki()
    stats = bench.statistics("wiki", calibration, "o_proj")
    options = PruneOptions(preset="recommended", pruning_type="ATTENTION", pruning_percentage=34)
    bench.score("attention third", bench.prune(options, calibration, stats))


def mixture(bench: Bench) -> None:
    calibration = bench.mixture()
    stats = bench.statistics("mixture", calibration, "down_proj")
    code = text_windows(bench.tokenizer, texts.code(texts.CODE_TEST), 512, 40)
    options = PruneOptions(preset="recommended", pruning_percentage=30, allocation="allocated")
    model = bench.prune(options, calibration, stats)
    bench.score("mixture 30", model)
    before = bench.score("dense code", bench.model, code)
    bench.note("mixture 30 code ratio", bench.score("mixture 30 code", model, code) / before)


def healing(bench: Bench, cpu_seconds: float = 600) -> None:
    model = apply_plan(bench.model, _recommended_30(bench))
    found = heal(model, bench.model, bench.wiki().batches, max_seconds=cpu_seconds, clock=time.process_time)
    print(f"  healed: {found}", flush=True)
    bench.score("healed 30", model)


def peer(bench: Bench, given: str | None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        python, job = peer_python(given, Path(folder) / "peer"), Path(folder) / "job.json"
        calibration = [row for batch in bench.wiki().batches for row in batch["input_ids"].tolist()]
        job.write_text(json.dumps({"model": str(bench.path), "test": bench.test, "calibration": calibration}))
        command = [python, str(ROOT / "benchmarks" / "quality_peer.py"), str(job)]
        environment = environment_of(python)
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
            for line in process.stdout or ():
                name, _, value = line.rpartition(" ")
                bench.note(name, float(value))
        if process.returncode:
            raise SystemExit(f"the peer failed with exit code {process.returncode}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="model folder; the demo model is built unless given")
    parser.add_argument("--peer-python", help=f"a Python that has {PEER}; default: a new environment")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--output", type=Path, default=Path("quality.json"))
    parser.add_argument("--cache", type=Path, help="folder to keep statistics in between runs")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    print(processor())
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as scratch:
        model = demo_model(args.model, Path(scratch) / "demo")
        bench = Bench(model, args.output, args.cache or Path(scratch))
        parts: dict[str, Callable[[], None]] = {
            "dense": lambda: dense(bench),
            "width": lambda: width(bench),
            "depth": lambda: depth(bench),
            "attention": lambda: attention(bench),
            "mixture": lambda: mixture(bench),
            "healing": lambda: healing(bench),
            "peer": lambda: peer(bench, args.peer_python),
        }
        for name in args.only:
            parts[name]()
    missed = [n for n, r in bench.results.items() if r["target"] is not None and r["value"] > r["target"]]
    raise SystemExit(f"targets missed: {', '.join(missed)}" if missed else 0)


if __name__ == "__main__":
    main()
