"""The bodies of the jobs that the demo and the pictures of the dashboard ask for."""

from __future__ import annotations

from typing import Any


def prune_job(
    model: str, percentage: float, spec: dict[str, Any], *, max_ratio: float, labels: dict[str, str]
) -> dict[str, Any]:
    """A prune of a local model with a gate on how many times worse its perplexity may become."""
    return {
        "kind": "prune",
        "spec": {"model": {"source": "local", "name": model}, "pruning_percentage": percentage, **spec},
        "labels": labels,
        "gates": [{"metric": "perplexity_ratio", "max": max_ratio}],
    }
