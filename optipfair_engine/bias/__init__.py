"""How a model treats prompts that differ in a protected attribute: metrics, pictures, statistics, behaviour.

Importing this package loads neither torch nor matplotlib: names are resolved on first use (PEP 562), so that
the processes that only draw stay small.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optipfair_engine.bias.activations import (
        get_activation_pairs,
        get_layer_names,
        get_prompt_activations,
        select_layers,
    )
    from optipfair_engine.bias.defaults import (
        ATTRIBUTES,
        DEFAULT_CONTROL_PAIRS,
        DEFAULT_PROMPT_PAIRS,
        generate_prompt_pairs,
    )
    from optipfair_engine.bias.metrics import calculate_activation_differences, calculate_bias_metrics
    from optipfair_engine.bias.visualization import (
        visualize_bias,
        visualize_heatmap,
        visualize_mean_differences,
        visualize_pca,
    )
    from optipfair_engine.bias.workflow import BiasOptions, bias_checkpoint

_EXPORTS = {
    "ATTRIBUTES": "defaults",
    "BiasOptions": "workflow",
    "DEFAULT_CONTROL_PAIRS": "defaults",
    "DEFAULT_PROMPT_PAIRS": "defaults",
    "bias_checkpoint": "workflow",
    "calculate_activation_differences": "metrics",
    "calculate_bias_metrics": "metrics",
    "generate_prompt_pairs": "defaults",
    "get_activation_pairs": "activations",
    "get_layer_names": "activations",
    "get_prompt_activations": "activations",
    "select_layers": "activations",
    "visualize_bias": "visualization",
    "visualize_heatmap": "visualization",
    "visualize_mean_differences": "visualization",
    "visualize_pca": "visualization",
}

__all__ = [
    "ATTRIBUTES",
    "DEFAULT_CONTROL_PAIRS",
    "DEFAULT_PROMPT_PAIRS",
    "BiasOptions",
    "bias_checkpoint",
    "calculate_activation_differences",
    "calculate_bias_metrics",
    "generate_prompt_pairs",
    "get_activation_pairs",
    "get_layer_names",
    "get_prompt_activations",
    "select_layers",
    "visualize_bias",
    "visualize_heatmap",
    "visualize_mean_differences",
    "visualize_pca",
]


def __getattr__(name: str) -> Any:
    """Resolve a public name on first use."""
    if name in _EXPORTS:
        try:
            return getattr(importlib.import_module(f"optipfair_engine.bias.{_EXPORTS[name]}"), name)
        except ModuleNotFoundError as error:
            if error.name != "matplotlib":
                raise
            raise ImportError(f"{name} draws figures: pip install 'optipfair-service[viz]'") from error
    raise AttributeError(f"module 'optipfair_engine.bias' has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names."""
    return sorted(__all__)
