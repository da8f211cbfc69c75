"""What a model's family says of what can be asked of it; what it leaves open, the weights tell later."""

from __future__ import annotations

from typing import Literal

from optipfair_engine.architectures.encoder import ENCODERS
from optipfair_engine.architectures.refusals import no_experts
from optipfair_engine.architectures.registry import known_architecture


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
