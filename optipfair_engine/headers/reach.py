"""What a model's facts say of what can be asked of it: the type of pruning that fits, and sizes in reach.

What the facts leave open isn't judged here; the weights tell later.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal

from optipfair_engine.architectures.encoder import ENCODERS
from optipfair_engine.architectures.refusals import no_experts
from optipfair_engine.architectures.registry import known_architecture
from optipfair_engine.architectures.routing import stated_routing
from optipfair_engine.headers.estimates import loaded_bytes, matrices_of_mlp

if TYPE_CHECKING:
    from optipfair_engine.headers.folder import ModelFacts


def width_type(model_type: str) -> Literal["MLP_GLU", "MLP"] | None:
    """The type of pruning that takes neurons of this family; ``None`` if the family isn't known."""
    family = known_architecture(model_type)
    if family is None or family.mlp is None:
        return None
    return "MLP" if family.mlp.kind == "plain" else "MLP_GLU"


def lacks_experts(model_type: str) -> str | None:
    """Why experts of this family can't be removed; ``None`` if they can, or the family isn't known."""
    family = known_architecture(model_type)
    return no_experts(model_type) if family is not None and family.experts is None else None


def why_speechless(model_type: str) -> str | None:
    """Why models of a family can't write calibration text; ``None`` if nothing is known against it."""
    if known_architecture(model_type) not in ENCODERS:
        return None
    return (
        f"models of the family {model_type!r} predict no next token, so they can't write calibration text "
        'themselves: give some, or preset "guide" to choose by weights alone'
    )


def why_not_dynamic(model_type: str) -> str | None:
    """Why models of a family can't be pruned dynamically; ``None`` if nothing is known against it."""
    family = known_architecture(model_type)
    if family is None:
        return None
    if family in ENCODERS:
        return (
            f"models of the family {model_type!r} predict no next token, so there is nothing behind a prompt "
            "to be pruned dynamically"
        )
    if family.mlp is None or family.width_refused:
        return f"models of the family {model_type!r} have no neurons that dynamic pruning could leave out"
    return None


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
