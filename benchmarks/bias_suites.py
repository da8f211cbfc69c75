"""CrowS-Pairs and StereoSet by this engine, beside plain scoring of one sentence at a time.

    python benchmarks/bias_suites.py [--model FOLDER] [--crows CSV] [--stereoset JSONL] [--items N]
        [--dtype bfloat16]

The plain scorer calls the model once a sentence and takes log-probabilities from its logits. Both see the
same model object; the first ``--items`` items of each file are scored (all, unless given).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sides import loaded_demo_model, processor, test_data

from optipfair_engine.bias.behaviour.likelihood import start_token
from optipfair_engine.bias.behaviour.preferences import score_crows_pairs, score_stereoset
from optipfair_engine.bias.prompts.suites import CrowsItem, StereoItem, read_suite


def plain_score(model: Any, tokenizer: Any, text: str, context: str | None = None) -> tuple[float, int]:
    """(Σ log p of the text's tokens, their number): one call of the model."""
    whole = text if context is None else f"{context} {text}"
    ids = [start_token(tokenizer), *tokenizer(whole, add_special_tokens=False)["input_ids"]]
    start = 1
    if context is not None:
        start += len(tokenizer(context, add_special_tokens=False)["input_ids"])
    batch = torch.tensor([ids])
    with torch.no_grad():
        log_p = model(batch).logits.float().log_softmax(dim=-1)
    scores = log_p[0, :-1].gather(1, batch[0, 1:, None])[start - 1 :]
    return float(scores.double().sum()), len(ids) - start


def plain_crows(model: Any, tokenizer: Any, items: Sequence[CrowsItem]) -> dict[str, float]:
    scores = np.array([[plain_score(model, tokenizer, t) for t in (i.more, i.less)] for i in items])
    return {
        "score": 100 * float((scores[:, 0, 0] > scores[:, 1, 0]).mean()),
        "perplexity": float(np.exp(-scores[..., 0].sum() / scores[..., 1].sum())),
    }


def plain_stereoset(model: Any, tokenizer: Any, items: Sequence[StereoItem]) -> dict[str, float]:
    table = []
    for item in items:
        context = item.context if item.kind == "intersentence" else None
        texts = (item.stereotype, item.anti_stereotype, item.unrelated)
        table.append([total / n for total, n in (plain_score(model, tokenizer, t, context) for t in texts)])
    scores, targets = np.array(table), np.array([item.target for item in items])
    stereo, related = scores[:, 0] > scores[:, 1], scores[:, :2] > scores[:, 2:]
    groups = [targets == target for target in np.unique(targets)]
    ss = float(np.mean([100 * stereo[group].mean() for group in groups]))
    lms = float(np.mean([100 * related[group].mean() for group in groups]))
    return {"ss": ss, "lms": lms, "icat": lms * min(ss, 100 - ss) / 50}


def engine_crows(model: Any, tokenizer: Any, items: Sequence[CrowsItem]) -> dict[str, float]:
    report = score_crows_pairs(model, tokenizer, items).scores.as_dict()
    return {"score": report["score"]["value"], "perplexity": report["perplexity"]}


def engine_stereoset(model: Any, tokenizer: Any, items: Sequence[StereoItem]) -> dict[str, float]:
    overall = score_stereoset(model, tokenizer, items).scores.as_dict()["overall"]
    return {name: overall[name] for name in ("ss", "lms", "icat")}


Scorer = Callable[[Any, Any, Any], dict[str, float]]


def compare(model: Any, tokenizer: Any, items: Any, plain: Scorer, engine: Scorer) -> dict[str, Any]:
    """Both scorers' results and seconds; each has run on two items before."""
    seconds, busy, results = {}, {}, {}
    for name, scorer in (("engine", engine), ("plain", plain)):
        scorer(model, tokenizer, items[:2])
        start, busy_before = time.perf_counter(), time.process_time()
        results[name] = scorer(model, tokenizer, items)
        seconds[name] = time.perf_counter() - start
        busy[name] = time.process_time() - busy_before
    return {
        "items": len(items),
        **results,
        "seconds": seconds,
        "cpu_seconds": busy,
        "times_faster": seconds["plain"] / seconds["engine"],
        "times_faster_by_cpu": busy["plain"] / busy["engine"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, help="model folder; the demo model is made unless given")
    parser.add_argument("--crows", type=Path, help="CrowS-Pairs as published; default: of the test data")
    parser.add_argument("--stereoset", type=Path, help="StereoSet as published; default: of the test data")
    parser.add_argument("--items", type=int)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "auto"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    print(processor())
    torch.set_num_threads(options.threads)
    name, model, tokenizer = loaded_demo_model(options.model, options.dtype)
    files = (
        options.crows or next((test_data() / "crows_pairs").glob("*.csv")),
        options.stereoset or next((test_data() / "stereoset").glob("*.jsonl")),
    )
    crows, stereoset = (read_suite(path)[: options.items] for path in files)
    results = {
        "model": name,
        "dtype": options.dtype,
        "crows_pairs": compare(model, tokenizer, crows, plain_crows, engine_crows),
        "stereoset": compare(model, tokenizer, stereoset, plain_stereoset, engine_stereoset),
    }
    print(json.dumps(results, indent=2))
    if options.output is not None:
        options.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
