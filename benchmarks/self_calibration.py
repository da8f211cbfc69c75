"""Perplexity of a pruned model by what it was calibrated on: one narrow text, its own text, or both.

All sides remove the same share of the neurons by the recommended preset, on the same model in the same run.
The narrow text is WikiText-2 validation; measured are WikiText-2 test, source code of the standard library,
and another text (Python's manual, unless one is given), in windows of 512 tokens spread over each.

    python benchmarks/self_calibration.py                                # an hour or more on two cores
    python benchmarks/self_calibration.py --windows 32 --evaluation 4    # less, and less exact
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import quality_texts as texts  # noqa: E402
from sides import demo_model, manual_text, processor  # noqa: E402

from optipfair_engine.architectures import locate  # noqa: E402
from optipfair_engine.calibration import CalibrationSet, calibration_from_windows, windows_from_text  # noqa: E402
from optipfair_engine.calibration.own_text import calibration_for  # noqa: E402
from optipfair_engine.checkpoints import load_model, load_tokenizer  # noqa: E402
from optipfair_engine.evaluation.perplexity import score_windows, text_windows  # noqa: E402
from optipfair_engine.options.prune import PruneOptions  # noqa: E402
from optipfair_engine.plans.apply import narrowed_in_passing  # noqa: E402
from optipfair_engine.pruning.planner import make_plan  # noqa: E402

LENGTH = 512


def main() -> None:
    """Measure, and print one line a calibration."""
    asked = _arguments()
    with tempfile.TemporaryDirectory() as folder:
        source = demo_model(asked.model, Path(folder) / "model")
        model, tokenizer = load_model(source, dtype="float32"), load_tokenizer(source)
        another = manual_text(asked.another, Path(folder)).read_text(encoding="utf-8")
    domains = {"wikitext": texts.wikitext("test"), "python": texts.code(texts.CODE_TEST), "another": another}
    windows = {
        name: text_windows(tokenizer, [text], LENGTH, asked.evaluation) for name, text in domains.items()
    }
    print(f"{processor()}\n{asked.percentage} % of the neurons, {asked.windows} windows of the narrow text\n")
    results: dict[str, Any] = {"processor": processor(), "dense": _scores(model, windows)}
    _show("dense", results["dense"])
    narrow = _narrow(tokenizer, asked.windows)
    for name, calibration, seconds in _calibrations(model, tokenizer, narrow, asked):
        start = time.process_time()
        options = PruneOptions(preset="recommended", pruning_percentage=asked.percentage)
        plan, view = make_plan(locate(model), options, calibration), locate(model)
        spent = time.process_time() - start
        with narrowed_in_passing(view, plan):
            results[name] = _scores(model, windows)
        results[name] |= {"cpu_seconds_writing": seconds, "cpu_seconds_planning": round(spent, 1)}
        _show(name, results[name])
        if asked.output is not None:
            asked.output.write_text(json.dumps(results, indent=1))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, help="a model folder; unless given, the demo model")
    parser.add_argument("--another", type=Path, help="a text to measure on, beside WikiText and source code")
    parser.add_argument("--percentage", type=float, default=30)
    parser.add_argument("--windows", type=int, default=128, help="of the narrow text, and of the model's own")
    parser.add_argument("--shares", type=float, nargs="*", default=[0.25], help="mix_self, one side each")
    parser.add_argument("--evaluation", type=int, default=40, help="windows of each text that is measured on")
    parser.add_argument("--output", type=Path, help="a JSON file of the figures")
    return parser.parse_args()


def _narrow(tokenizer: Any, count: int) -> CalibrationSet:
    windows = windows_from_text(tokenizer, texts.wikitext("valid"), LENGTH, count)
    return calibration_from_windows(windows, batch_size=4, source="WikiText-2 validation", num_texts=1)


def _calibrations(model: Any, tokenizer: Any, narrow: CalibrationSet, asked: argparse.Namespace) -> Any:
    """(name, samples, CPU seconds of writing) of each side: a narrow text, the model's own, and mixtures."""
    yield "narrow", narrow, 0.0
    own = {"source": "model"}
    sides: list[tuple[str, CalibrationSet | None, dict[str, Any]]]
    sides = [("own", None, {"calibration": own, "num_samples": asked.windows})]
    sides += [(f"narrow + {share:g} own", narrow, {"mix_self": share}) for share in asked.shares]
    for name, given, chosen in sides:
        start = time.process_time()
        options = PruneOptions(max_length=LENGTH, batch_size=4, **chosen)
        calibration = calibration_for(model, tokenizer, options, given)
        yield name, calibration, round(time.process_time() - start, 1)


def _scores(model: Any, windows: dict[str, list[list[int]]]) -> dict[str, float]:
    return {name: round(score_windows(model, part).perplexity, 3) for name, part in windows.items()}


def _show(name: str, scores: dict[str, float]) -> None:
    print(f"{name:20s}", *(f"{key} {value:<10g}" for key, value in scores.items()), flush=True)


if __name__ == "__main__":
    main()
