"""The model card (README.md) of a pruned checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optipfair_engine.checkpoints.manifest import SourceInfo

if TYPE_CHECKING:
    from optipfair_engine.plans import PruningPlan


def plan_summary(plan: PruningPlan | None) -> dict[str, Any] | None:
    """What a plan does, without its indices: method, and sizes by layer."""
    if plan is None:
        return None
    return {
        "method": plan.provenance.to_json(),
        "removed_layers": list(plan.removed_layers),
        "kept_neurons": {str(layer): len(kept) for layer, kept in sorted(plan.kept_neurons.items())},
        "kept_heads": {str(layer): len(heads.query) for layer, heads in sorted(plan.kept_heads.items())},
        "kept_experts": {str(layer): len(kept) for layer, kept in sorted(plan.kept_experts.items())},
        "refitted_weights": len(plan.weights),
    }


def write_model_card(
    folder: Path,
    model_type: str,
    summary: Mapping[str, Any] | None,
    source: SourceInfo | None,
    measured: Mapping[str, float] | None = None,
    warnings: Sequence[str] = (),
) -> None:
    """Write README.md: what was pruned, how, what was measured (perplexities by metric), how to load it.

    ``warnings`` are what whoever uses the model must know.
    """
    name = source.name if source else "a model in memory"
    uneven = has_unequal_layers(folder)
    lines = [
        "---",
        "library_name: transformers",
        "tags: [pruned, optipfair]",
        *([f"base_model: {name}"] if "/" in name else []),  # of the hub: a folder's name says nothing there
        "---",
        f"# {name}, pruned",
        "",
        f"A structurally pruned {model_type} model, made with OptiPFair Service from `{name}`"
        + (f" (revision `{source.revision}`)." if source and source.revision else "."),
        "Its licence and intended use are those of that model. Pruning changes what a model says: measure it",
        "on your own task before you use it.",
        "",
        "## How it was pruned",
        "",
        *_method_lines(summary),
        "",
        *_measured_lines(measured or {}),
        *_warning_lines(warnings),
        "## How to load it",
        "",
        "```python",
        *(_UNEVEN if uneven else _EVEN),
        "```",
        "",
        "`optipfair_manifest.json` holds the SHA-256 of each file and the result of the reload check.",
    ]
    (folder / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


_EVEN = (
    "from transformers import AutoModelForCausalLM",
    "",
    'model = AutoModelForCausalLM.from_pretrained("path/to/this/folder")',
)
_UNEVEN = (
    "# its layers have unequal sizes (per_layer_config), which plain transformers refuses",
    "from optipfair_engine import load_pruned",
    "",
    'model = load_pruned("path/to/this/folder")',
)


def has_unequal_layers(folder: Path) -> bool:
    """Whether a checkpoint's config gives its layers sizes of their own, so that it takes ``load_pruned``."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    text = config.get("text_config") or {}
    return bool(config.get("per_layer_config") or text.get("per_layer_config"))


def _method_lines(summary: Mapping[str, Any] | None) -> list[str]:
    if summary is None:
        return ["No plan was given."]
    # warnings have a section of their own
    method = {key: value for key, value in summary["method"].items() if key != "warnings"}
    lines = [f"- {key}: {_method_value(key, value)}" for key, value in sorted(method.items())]
    if summary["removed_layers"]:
        lines.append(f"- removed layers: {_plain(summary['removed_layers'])}")
    sizes = [key for key in ("kept_neurons", "kept_heads", "kept_experts") if summary[key]]
    return lines + [f"- {key.replace('_', ' ')}: {_sizes(summary[key])}" for key in sizes]


def _method_value(key: str, value: Any) -> str:
    """What people can read of it; ``plan.json`` and the manifest hold all of it."""
    if key == "ridges" and value:
        return f"{min(value.values()):.2g} to {max(value.values()):.2g} by layer"
    if key == "calibration" and isinstance(value, Mapping):
        facts = [f"{name.replace('_', ' ')} {fact}" for name, fact in value.items() if name != "warnings"]
        return ", ".join(facts)
    return _plain(value)


def _measured_lines(measured: Mapping[str, float]) -> list[str]:
    if not measured:
        return []
    named = {name.removeprefix("perplexity_").replace("_", " "): value for name, value in measured.items()}
    rows = [f"| {name} | {value:.4g} |" for name, value in named.items()]
    return ["## Measured", "", "| perplexity | |", "|---|---|", *rows, ""]


def _warning_lines(warnings: Sequence[str]) -> list[str]:
    if not warnings:
        return []
    return ["## Warnings", "", *(f"- {text[:1].upper()}{text[1:]}" for text in warnings), ""]


def _sizes(by_layer: Mapping[str, int]) -> str:
    distinct = set(by_layer.values())
    if len(distinct) == 1:
        return f"{distinct.pop()} in each of {len(by_layer)} layers"
    return "by layer " + _plain(by_layer)


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
