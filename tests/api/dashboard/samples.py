"""Jobs as the dashboard meets them, with results in the form in which the engine writes them."""

from __future__ import annotations

import json
import math
from typing import Any

from tests.api.conftest import FILES, FakeWorker

WIDTH, LAYERS = 96, 12
GATES = [{"metric": "perplexity_ratio", "max": 1.3}]


def plan() -> dict[str, Any]:
    """`plan.json` of a calibrated prune whose layers differ."""
    kept = {layer: WIDTH - 12 - 2 * (layer % 5) for layer in range(LAYERS)}
    curve = {
        str(layer): [(i / WIDTH) ** 3 * (0.5 + layer / LAYERS) for i in range(WIDTH + 1)]
        for layer in range(LAYERS)
    }
    return {
        "curves": curve,
        "kept_heads": {},
        "kept_neurons": {str(layer): list(range(size)) for layer, size in kept.items()},
        "num_layers": LAYERS,
        "removal_order": None,
        "removed_layers": [],
    }


def prune_metrics() -> dict[str, Any]:
    """The metrics of such a prune."""
    return {
        "original_parameters": 134_515_008,
        "pruned_parameters": 118_590_912,
        "reduction": 15_924_096,
        "percentage_reduction": 11.84,
        "perplexity_dense": 17.31,
        "perplexity_pruned": 21.02,
        "perplexity_static_same_size": 310.5,
        "perplexity_ratio": 1.214,
        "output_bytes": 237_181_824,
        "loads_with_transformers": 0,
        "reload_check": "logits",
        "calibration_tokens": 16_384,
        "seconds": 91.4,
        "warnings": [],
    }


def bias_summary() -> dict[str, Any]:
    """`bias_summary.json`: each layer's mean difference with its interval."""
    layers = {}
    for layer in range(LAYERS):
        value = 0.02 + 0.03 * math.sin(layer / 3) ** 2
        layers[f"mlp_output_layer_{layer}"] = {"value": value, "low": value * 0.7, "high": value * 1.3}
    return {"activations": {"layers": layers}}


def importance_metrics() -> dict[str, Any]:
    """The metrics of an importance job."""
    scores = {str(layer): 0.4 - 0.3 * math.sin(0.5 + layer / 4) for layer in range(LAYERS)}
    return {"importance": scores, "min_importance": min(scores.values()), "tokens": 4096, "seconds": 12.0}


def finish(worker: FakeWorker, job: dict[str, Any], attempt: int) -> None:
    """Let a running job succeed with the results of its kind."""
    files, metrics = dict(FILES), prune_metrics()
    if job["kind"] == "prune":
        files["plan.json"] = json.dumps(plan()).encode()
    if job["kind"] == "bias":
        metrics = {"mean_difference": 0.031, "mean_difference_low": 0.025, "mean_difference_high": 0.04}
        files = {"bias_summary.json": json.dumps(bias_summary()).encode(), "report.html": b"<p>report"}
    if job["kind"] == "importance":
        metrics, files = importance_metrics(), {"metrics.json": b"{}"}
    worker.succeed(job["id"], attempt, files, metrics)
