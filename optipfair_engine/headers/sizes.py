"""Sizes, from a model's facts alone: of its weights, and of what is left by a prune, or out of its reach.

What the facts leave open isn't judged here; the weights tell later.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from optipfair_engine.architectures.registry import known_architecture
from optipfair_engine.architectures.routing import stated_routing
from optipfair_engine.headers.reach import width_type

if TYPE_CHECKING:
    from optipfair_engine.headers.folder import ModelFacts

_BYTES_OF = {"float32": 4, "bfloat16": 2, "float16": 2}


def loaded_bytes(facts: ModelFacts, dtype: str | None = None) -> int:
    """Bytes of a model's weights once they are loaded as ``dtype``: by default as stored, a GGUF in bfloat16.

    A pruned checkpoint is never larger.
    """
    size = _BYTES_OF.get(dtype or "auto", 2 if facts.format == "gguf" else None)
    return facts.bytes if size is None else facts.parameters * size


def out_of_reach(facts: ModelFacts, spec: Mapping[str, Any]) -> tuple[str, str] | None:
    """The field of a prune spec whose size this model can't get, and why; ``None`` if there is none."""
    rate, hidden, wide = spec.get("expansion_rate"), facts.hidden_size, facts.intermediate_size
    if rate and hidden and wide and round(rate * hidden / 100) > wide:
        now = 100 * wide / hidden
        return "expansion_rate", f"{rate:g} % would make the model larger: its rate is {now:.4g} % now"
    if spec.get("pruning_type") == "EXPERTS" and spec.get("pruning_percentage"):
        why = _too_few_experts(facts, spec["pruning_percentage"])
        return None if why is None else ("pruning_percentage", why)
    if spec.get("target_parameters"):
        why = _target(facts, spec, int(spec["target_parameters"]), facts.parameters, "parameters")
        return None if why is None else ("target_parameters", why)
    if spec.get("target_bytes"):
        # the file's own tables are in it: what has to be below it is the weights alone
        why = _target(facts, spec, int(spec["target_bytes"]), loaded_bytes(facts, spec.get("dtype")), "bytes")
        return None if why is None else ("target_bytes", why)
    return None


def _too_few_experts(facts: ModelFacts, percentage: float) -> str | None:
    routing = stated_routing(vars(facts), known_architecture(facts.model_type))
    if routing is None:
        return None
    kept = routing.num_experts - int(Decimal(str(percentage)) * routing.num_experts / 100)
    return routing.refusal(facts.model_type, kept, f"pruning_percentage {percentage:g}")


def _target(facts: ModelFacts, spec: Mapping[str, Any], target: int, whole: int, unit: str) -> str | None:
    if target >= whole:
        return f"the model has {whole:,} {unit} already: give a smaller target"
    least = int(whole * (1 - _prunable_share(facts, spec)))
    if target < least:
        what = {"ATTENTION": "heads", "EXPERTS": "experts"}.get(str(spec.get("pruning_type")), "neurons")
        return f"removing {what} alone leaves at least {least:,} of {whole:,} {unit}: give a larger target"
    return None


def _prunable_share(facts: ModelFacts, spec: Mapping[str, Any]) -> float:
    """The largest share of the parameters that pruning could take; 1 where the facts don't tell."""
    if spec.get("pruning_type") == "EXPERTS" and facts.expert_parameters is not None:
        return facts.expert_parameters / max(facts.parameters, 1)
    sizes = (facts.num_layers, facts.hidden_size, facts.intermediate_size)
    if (
        None in sizes
        or spec.get("pruning_type") not in ("MLP_GLU", "MLP")
        or not width_type(facts.model_type)
    ):
        return 1.0
    chosen = spec.get("layer_indices")
    layers = len(chosen) if chosen else facts.num_layers or 0
    mlp = (
        layers * matrices_of_mlp(facts.model_type) * (facts.hidden_size or 0) * (facts.intermediate_size or 0)
    )
    rest = 4 * (facts.num_layers or 0) * (facts.hidden_size or 0) ** 2
    rest += 2 * (facts.hidden_size or 0) * (facts.vocab_size or 0)
    if mlp + rest < 0.9 * facts.parameters and not chosen:
        return 1.0  # experts, or layers of several shapes: these sizes don't describe the whole
    # biases of neurons, and a wide layer among narrow ones, are not in these sizes: some room for them
    return min(1.0, 1.02 * mlp / max(facts.parameters, 1))


def output_bytes(facts: ModelFacts, spec: Mapping[str, Any], weights: int) -> int:
    """Bytes of what a prune writes of so many bytes of weights."""
    if spec.get("target_bytes"):
        return min(weights, int(spec["target_bytes"]))
    if spec.get("target_parameters"):
        return int(weights * min(1.0, int(spec["target_parameters"]) / max(facts.parameters, 1)))
    return int(weights * (1 - _removed_share(facts, spec)))


def _removed_share(facts: ModelFacts, spec: Mapping[str, Any]) -> float:
    """The share of all parameters that goes."""
    layers, hidden, wide = facts.num_layers or 1, facts.hidden_size or 1, facts.intermediate_size or 1
    in_layers = max(0, facts.parameters - hidden * (facts.vocab_size or 0)) / max(facts.parameters, 1)
    if spec.get("pruning_type") == "DEPTH":
        by_count = (spec.get("num_layers_to_remove") or len(spec.get("layer_indices") or ())) / layers
        return in_layers * min(1.0, by_count or (spec.get("depth_pruning_percentage") or 0) / 100)
    if spec.get("pruning_type") == "EXPERTS":
        experts = (facts.expert_parameters or 0) / max(facts.parameters, 1)
        return experts * _share_asked(spec)
    chosen = spec.get("layer_indices")
    share = len(chosen) / layers if chosen else 1.0
    rate = spec.get("expansion_rate")
    removed = 1 - min(1.0, rate / 100 * hidden / wide) if rate else _share_asked(spec)
    mlp = min(
        in_layers, layers * matrices_of_mlp(facts.model_type) * hidden * wide / max(facts.parameters, 1)
    )
    return mlp * share * removed


def _share_asked(spec: Mapping[str, Any]) -> float:
    """The share of neurons, heads or experts that is to go; 0 where the size is given otherwise."""
    return float(spec.get("pruning_percentage") or 0) / 100


def matrices_of_mlp(model_type: str) -> int:
    """Weight matrices that a neuron has a row or column of: up and down, and a gate in most families."""
    family = known_architecture(model_type)
    return 2 if family is not None and family.mlp is not None and family.mlp.gate is None else 3
