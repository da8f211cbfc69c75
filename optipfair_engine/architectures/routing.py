"""How tokens choose among experts, and which numbers of experts a family's code can so choose from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from optipfair_engine.architectures import config_names
from optipfair_engine.architectures.base import Architecture


@dataclass(frozen=True)
class Routing:
    """The choice of experts in every layer that has some.

    Attributes:
        num_experts: experts of a layer, shared ones (which every token passes) not counted.
        per_token: how many of them each token is sent to (top-k).
        groups: groups of equal size that the experts form, in their order; 1 where they form none.
        chosen_groups: in how many of them a token may choose.
        least_of_group: experts that every group must have for the family's code to judge it.
    """

    num_experts: int
    per_token: int
    groups: int = 1
    chosen_groups: int = 1
    least_of_group: int = 1

    def fault(self, kept: int) -> str | None:
        """Why no layer can have so many experts, in words that follow a number; ``None`` if it can."""
        if kept < self.per_token:
            return f"each token is sent to {self.per_token} (num_experts_per_tok)"
        if kept % self.groups:
            return f"the router needs {self.groups} groups of equal size (n_group)"
        size = kept // self.groups
        if size < self.least_of_group:
            return f"the router judges each of {self.groups} groups by its {self.least_of_group} best experts"
        if self.chosen_groups * size < self.per_token:
            return (
                f"each token is sent to {self.per_token} experts of {self.chosen_groups} groups, "
                f"and those would have {size} each"
            )
        return None

    def refusal(self, model_type: str, kept: int, asked: str) -> str | None:
        """Why layers can't have so many experts, and how many they can; ``None`` if they can, or have.

        ``asked`` is the option that asks for it.
        """
        fault = self.fault(kept)
        if fault is None or kept == self.num_experts:
            return None
        counts = [f"{count} ({100 - 100 * count / self.num_experts:g} %)" for count in self.possible()]
        shown = counts if len(counts) <= 6 else [*counts[:3], "…", *counts[-2:]]
        return (
            f"{model_type}: {asked} leaves {kept} of {self.num_experts} experts, but {fault}; what can stay "
            f"(and per cent that then go): {', '.join(shown)}"
        )

    def possible(self) -> list[int]:
        """The numbers of experts that layers can have, ascending; the present one is the last."""
        return [kept for kept in range(1, self.num_experts + 1) if self.fault(kept) is None]


def stated_routing(config: Mapping[str, Any], family: Architecture | None) -> Routing | None:
    """What a ``config.json`` says of routing; ``None`` if that is too little, or experts can't be removed."""
    spec = None if family is None else family.experts
    experts = config_names.stated(config, config_names.NUM_EXPERTS)
    per_token = config_names.stated(config, ("num_experts_per_tok",))
    if spec is None or experts is None or per_token is None:
        return None
    if not spec.by_groups:
        return Routing(experts, per_token)
    groups = config_names.stated(config, ("n_group",)) or 1
    return Routing(experts, per_token, groups, config_names.stated(config, ("topk_group",)) or groups, 2)
