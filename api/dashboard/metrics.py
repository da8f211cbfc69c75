"""Metrics as tables that one can read: grouped, with words for names, units, and intervals beside values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from api.dashboard.words import number, size, span, words

_GROUPS: dict[str, tuple[str, ...]] = {
    "Quality": ("perplexity", "evaluation", "reload_check", "loads_with_transformers", "predicted_error"),
    "Size": (
        *("original_", "pruned_", "parameters", "reduction", "percentage_reduction", "expansion_rate"),
        *("output_bytes", "bytes", "total_layers", "final_layer", "layers_removed", "layer_reduction"),
        *("num_layers", "hidden_size", "vocab_size", "intermediate"),
    ),
    "Bias": (
        *("mean_difference", "bias_", "noise_floor", "effect_over", "minimum_detectable", "share_aligned"),
        *("pairs", "templates", "control_pairs", "crows_", "stereoset_", "preference", "mcnemar", "neurons_"),
    ),
    "Speed": ("tokens_per_second", "speedup", "avg_time", "seconds"),
    "Calibration and healing": ("calibration", "healing", "tokens", "allocation"),
    "Importance": ("min_importance", "max_importance", "mean_importance"),
}
_ENDS = ("_low", "_high")


@dataclass(frozen=True)
class Row:
    """One metric: its own name (as gates take it), words, and its value with its interval."""

    name: str
    label: str
    value: str
    interval: str = ""


def without_copies(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics, of a pipeline only those with their step's name: many stand there without it, too."""
    copies = {name.partition(".")[2] for name in metrics}
    return {name: value for name, value in metrics.items() if name not in copies}


def flat(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics that fit on a line; lists and tables stay in metrics.json, and in the charts."""
    return {name: value for name, value in metrics.items() if not isinstance(value, dict | list)}


def tables(metrics: Mapping[str, Any]) -> list[tuple[str, list[Row]]]:
    """(heading, rows) of each group that has any; of a pipeline, one group a step and subject."""
    found: dict[str, list[Row]] = {}
    for row, heading in _rows(flat(metrics)):
        found.setdefault(heading, []).append(row)
    order = [*_GROUPS, "Other"]
    return sorted(found.items(), key=lambda item: (item[0].rpartition(": ")[0], _place(item[0], order)))


def _place(heading: str, order: list[str]) -> int:
    own = heading.rpartition(": ")[2]
    return order.index(own) if own in order else len(order)


def _rows(metrics: Mapping[str, Any]) -> Iterator[tuple[Row, str]]:
    for name, value in metrics.items():
        base = next((name.removesuffix(end) for end in _ENDS if name.endswith(end)), name)
        if base != name and base in metrics:
            continue  # told beside its value
        step, _, own = name.rpartition(".")
        group = _group(own)
        heading = f"{step}: {group}" if step else group
        yield Row(name, words(own), said(own, value), _interval(metrics, name)), heading


def _group(name: str) -> str:
    for group, beginnings in _GROUPS.items():
        if name.startswith(beginnings):
            return group
    return "Other"


def said(name: str, value: Any) -> str:
    """A value with the unit that its name tells."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return number(value)
    if name.endswith("bytes"):
        return size(int(value))
    if name.endswith("seconds") or name == "avg_time":
        return span(float(value))
    if name == "loads_with_transformers":
        return number(bool(value))
    return number(value) + _unit(name)


def _unit(name: str) -> str:
    if "percentage" in name:
        return " %"
    return " ×" if name.endswith("_ratio") or name.startswith("speedup") else ""


def _interval(metrics: Mapping[str, Any], name: str) -> str:
    ends = [metrics.get(name + end) for end in _ENDS]
    if any(end is None for end in ends):
        return ""
    return " … ".join(number(end) for end in ends)
