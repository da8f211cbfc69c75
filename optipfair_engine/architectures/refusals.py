"""What a family's description refuses, in the words that people are told."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from optipfair_engine.architectures.base import Architecture, ExpertsSpec, MlpSpec
from optipfair_engine.errors import UnsupportedModelError


def check_width(architecture: Architecture) -> MlpSpec:
    """Where the family's MLP is.

    Raises:
        UnsupportedModelError: its neurons can't be removed.
    """
    if architecture.width_refused or architecture.mlp is None:
        reason = architecture.width_refused or "its layers have no known MLP"
        raise UnsupportedModelError(f"{architecture.model_type}: neurons can't be removed: {reason}")
    return architecture.mlp


def no_neurons(model_type: str, layer: int, missing: Iterable[str], place: str) -> str:
    """What is said of a layer without an MLP of known shape; ``place``: where its parts were looked for."""
    return (
        f"{model_type}: neurons of layer {layer} can't be removed: {', '.join(missing)} not found in {place} "
        '(those of experts can\'t be; whole experts may be, with pruning_type="EXPERTS")'
    )


def check_experts(architecture: Architecture) -> ExpertsSpec:
    """Where the family's experts are.

    Raises:
        UnsupportedModelError: it has none, or they can't be removed.
    """
    if architecture.experts is None:
        raise UnsupportedModelError(no_experts(architecture.model_type))
    return architecture.experts


def no_experts(model_type: str) -> str:
    """What is said of a family whose experts can't be removed."""
    return (
        f"{model_type}: experts can't be removed: it is no mixture of experts, or none whose experts are "
        "known here (those of Mixtral, Qwen2-MoE, Qwen3-MoE, OLMoE, DeepSeek-V3, GLM-4-MoE and gpt-oss are)"
    )


def no_expert_layers(model_type: str) -> str:
    """What is said of a model of such a family without a layer that has experts."""
    return f"{model_type}: experts can't be removed: none of its layers has experts, all are dense"


def check_heads_removable(model_type: str, refused: str | None) -> None:
    """Raise ``UnsupportedModelError`` if there is a reason why the family's heads can't be removed."""
    if refused:
        raise UnsupportedModelError(f"{model_type}: attention heads can't be removed: {refused}")


def check_depth(
    architecture: Architecture, stated: Callable[[str], object], num_layers: int, indices: Iterable[int]
) -> tuple[int, ...]:
    """The layers to remove, sorted.

    Args:
        architecture: the family.
        stated: what the config says under a name; falsy if it says nothing.
        num_layers: of the stack.
        indices: the layers to remove.

    Raises:
        UnsupportedModelError: the family's layers depend on their number in a way no config expresses.
        ValueError: no such layer, a repeated one, or none would be left.
    """
    removed = tuple(sorted(indices))
    reasons = [reason for name, reason in architecture.depth_guards if stated(name)]
    if architecture.depth_refused:
        reasons.append(architecture.depth_refused)
    if reasons:
        raise UnsupportedModelError(
            f"{architecture.model_type}: layers can't be removed: {'; '.join(reasons)}"
        )
    if len(set(removed)) != len(removed) or any(not 0 <= i < num_layers for i in removed):
        raise ValueError(f"layers to remove must be distinct and in [0, {num_layers}): {list(removed)}")
    if len(removed) >= num_layers:
        raise ValueError(f"at least one of the {num_layers} layers must stay")
    return removed
