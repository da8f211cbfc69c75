"""What the exchange of activations between two prompts moved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from optipfair_engine.bias.results.intervals import Interval, named
from optipfair_engine.notebooks import table
from optipfair_engine.options.words import Patching

#: How many of the units that react most are compared with as many that cause most.
TOP: Final = 20


@dataclass(frozen=True)
class Patched:
    """One unit that was exchanged.

    Attributes:
        component: "neuron", "head", "attention" or "mlp".
        layer: its layer.
        index: its number in the layer; 0 of the two halves of a layer.
        effect: the share of the logits' difference that it moves.
        estimate: the same by the gradient alone.
        reaction: the mean norm of the difference of its activations.
        reaction_rank: its place among all units by reaction, from 1 on.
    """

    component: str
    layer: int
    index: int
    effect: Interval
    estimate: float
    reaction: float
    reaction_rank: int

    @property
    def name(self) -> str:
        """How tables and figures call it: ``layer · number``, or ``layer · attention``."""
        return f"{self.layer} · {self.component if self.component in ('attention', 'mlp') else self.index}"

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**asdict(self), "effect": self.effect.as_dict()}


@dataclass(frozen=True)
class Cause:
    """The patched units of one kind, the largest effects first.

    Attributes:
        kind: what was exchanged.
        pairs: how many pairs it is of.
        templates: how many templates they come from.
        units: how many units of the kind there are; those that weren't patched have an estimate only.
        distance: mean total variation distance of both prompts' next-token distributions, of all pairs.
        agreement: Spearman's correlation of effect and reaction over all units.
        patched: the units.
        warnings: what to mind.
    """

    kind: Patching
    pairs: int
    templates: int
    units: int
    distance: Interval
    agreement: float | None
    patched: tuple[Patched, ...]
    warnings: tuple[str, ...]

    @property
    def strongest(self) -> Sequence[Patched]:
        """The units with the largest effects: 20 of them, and not more than a quarter of all."""
        return self.patched[: max(1, min(TOP, self.units // 4))]

    @property
    def also_react(self) -> int:
        """How many of the strongest are among as many units that react most."""
        return sum(unit.reaction_rank <= len(self.strongest) for unit in self.strongest)

    def _repr_html_(self) -> str:
        head = (f"{self.kind} (layer · number)", "effect", "95 % interval", "place by reaction")
        return table(
            head,
            [
                (unit.name, unit.effect.value, unit.effect.limits(), unit.reaction_rank)
                for unit in self.strongest
            ],
        )

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "kind": self.kind,
            "pairs": self.pairs,
            "templates": self.templates,
            "units": self.units,
            "next_token_distance": self.distance.as_dict(),
            "reaction_effect_correlation": self.agreement,
            "patched": [unit.as_dict() for unit in self.patched],
            "warnings": list(self.warnings),
        }

    def flat(self) -> dict[str, object]:
        """Flat metrics; ``largest_effect`` is of the unit with the largest one, a share."""
        return {
            "patched_units": len(self.patched),
            "reaction_effect_correlation": self.agreement,
            **named("largest_effect", self.patched[0].effect),
            **named("next_token_distance", self.distance),
        }
