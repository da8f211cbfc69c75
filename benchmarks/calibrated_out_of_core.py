"""Calibrated pruning out of core: its time beside one bare forward pass, and its private memory.

    python benchmarks/calibrated_out_of_core.py [--model FOLDER] [--windows 128] [--rounds 3]
    python benchmarks/calibrated_out_of_core.py --shape 1b --windows 32

With ``--model`` (a safetensors folder with a tokenizer; the demo model of ``optipfair demo-model`` unless
given) each round runs, in new processes: one dense forward pass of the windows through the model's body (no
language-model head) on the model in memory, and ``prune_checkpoint`` with ``execution="streamed"`` at 30 % of
the neurons on the same windows, from folder to folder. Both are timed without imports. With ``--shape`` a
random checkpoint of that shape (see ``streaming_vs_optipfair``) is pruned on random windows, and only memory
is reported.

Private memory is the peak of RssAnon, sampled every 5 ms. Exit code 1 if an aim of the project is missed:
at most 3 × the forward pass; for the 1B shape with 32 windows of 512 tokens under 2.5 GB.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

from sides import demo_model, manual_text, processor
from streaming_vs_optipfair import GB, SHAPES, make_checkpoint, measure, warm

WINDOWS_CODE = """
import sys, time, torch
from pathlib import Path
from optipfair_engine.calibration import calibration_from_texts, calibration_from_windows
source, output = Path(sys.argv[1]), Path(sys.argv[2])
windows, text, length = int(sys.argv[3]), sys.argv[4], 512
if text == "random":
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(10, 1000, (windows, length), generator=generator)
    calibration = calibration_from_windows(ids.tolist(), batch_size=8, source="random")
else:
    from optipfair_engine.calibration import load_calibration_file
    from optipfair_engine.checkpoints import load_tokenizer
    calibration = load_calibration_file(
        Path(text), load_tokenizer(source), max_length=length, num_samples=windows, batch_size=8
    )
"""

FORWARD_CODE = (
    WINDOWS_CODE
    + """
from optipfair_engine.checkpoints import load_model
model = load_model(source)
with torch.no_grad():
    model.base_model(calibration.batches[0]["input_ids"][:1], use_cache=False)
    start, cpu = time.perf_counter(), time.process_time()
    for batch in calibration.batches:
        model.base_model(**batch, use_cache=False)
print(time.perf_counter() - start, time.process_time() - cpu)
output.mkdir()
"""
)

PRUNE_CODE = (
    WINDOWS_CODE
    + """
import transformers.models.llama.modeling_llama
from optipfair_engine.options.prune import PruneOptions
import optipfair_engine.workflow.prune.out_of_core  # imports are not timed
from optipfair_engine.workflow import prune_checkpoint
options = {"pruning_percentage": 30, "verify": "structure"}
if sys.argv[5] == "recommended":
    options |= {"preset": "recommended", "allocation": "allocated"}
else:
    options |= {"neuron_selection_method": sys.argv[5], "compensation": "least_squares"}
start, cpu = time.perf_counter(), time.process_time()
prune_checkpoint(source, output, PruneOptions(**options, execution="streamed"), calibration_texts=calibration)
print(time.perf_counter() - start, time.process_time() - cpu)
"""
)


def one_round(
    source: Path, output: Path, windows: int, text: str, preset: str
) -> tuple[tuple[float, float], tuple[float, float], float]:
    """(Wall, processor) seconds of the forward pass and of pruning, and pruning's private memory in bytes."""
    arguments = [str(source), str(output), str(windows), text, preset]
    warm(source)
    forward = (0.0, 0.0)
    if text != "random":
        _, said = measure([sys.executable, "-c", FORWARD_CODE, *arguments], output)
        forward = _seconds(said)
    run, said = measure([sys.executable, "-c", PRUNE_CODE, *arguments], output)
    return forward, _seconds(said), run.private


def _seconds(said: str) -> tuple[float, float]:
    wall, cpu = said.split()[-2:]
    return float(wall), float(cpu)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path)
    parser.add_argument("--shape", choices=sorted(SHAPES))
    parser.add_argument("--layers", type=int, help="of --shape: fewer layers, for a quick look at the memory")
    parser.add_argument(
        "--checkpoint", type=Path, help="of --shape: use the one that is there, or make it there"
    )
    parser.add_argument("--text", type=Path, help="calibration text; Python's own manual unless given")
    parser.add_argument("--windows", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--preset", default="recommended", help="recommended, or OBS or MAW with the refit")
    options = parser.parse_args()
    print(processor())
    beside = options.checkpoint.parent if options.checkpoint else None
    with tempfile.TemporaryDirectory(prefix="optipfair-bench-", dir=beside) as scratch:
        folder = Path(scratch)
        text = str(manual_text(options.text, folder))
        if options.shape:
            source, text = options.checkpoint or folder / "source", "random"
            if not (source / "config.json").exists():
                make_checkpoint(source, options.shape, options.layers)
        else:
            source = demo_model(options.model, folder / "source")
        rounds = [
            one_round(source, folder / "output", options.windows, text, options.preset)
            for _ in range(options.rounds)
        ]
    wall, cpu = (
        [statistics.median(found[which][clock] for found in rounds) for which in (0, 1)] for clock in (0, 1)
    )
    private = statistics.median(found[2] for found in rounds)
    print(f"{options.preset}, {options.windows} windows of 512 tokens")
    print(f"pruning {wall[1]:.1f} s ({cpu[1]:.1f} s of processor), private memory {private / GB:.2f} GB")
    held = not (options.shape == "1b" and private >= 2.5 * GB)
    if text != "random":
        print(f"bare forward pass {wall[0]:.1f} s ({cpu[0]:.1f} s of processor)")
        print(f"pruning takes {wall[1] / wall[0]:.2f} × (processor: {cpu[1] / cpu[0]:.2f} ×)")
        held = held and wall[1] <= 3 * wall[0]
    print("held" if held else "MISSED")
    return 0 if held else 1


if __name__ == "__main__":
    raise SystemExit(main())
