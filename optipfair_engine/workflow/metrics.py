"""``metrics.json``: the flat result of a run, written once, when all of it is known."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from optipfair_engine.jsonable import write_json
from optipfair_engine.notebooks import Result

METRICS_FILE: Final = "metrics.json"


def write_metrics(output: Path, metrics: Mapping[str, Any]) -> Result:
    """Write a run's metrics into its folder as strict JSON; returns what was written."""
    return Result(write_json(output / METRICS_FILE, metrics))
