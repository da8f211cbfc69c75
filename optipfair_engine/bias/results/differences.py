"""How far apart a model's activations of two prompts are, and which neurons react."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from optipfair_engine.bias.results.intervals import Interval, named


@dataclass(frozen=True)
class Noise:
    """The control pairs' mean difference, and how many times it the pairs' is (None: it is zero)."""

    floor: Interval
    effect: Interval | None
    above: bool | None

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        effect = self.effect.as_dict() if self.effect is not None else None
        return {**self.floor.named("noise_floor"), "effect": effect, "above_noise": self.above}


@dataclass(frozen=True)
class Difference:
    """A mean difference over pairs; ``mean`` is None where no pair had a position that could be compared."""

    mean: Interval | None
    minimum_detectable: float | None
    noise: Noise | None = None

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        mean = self.mean.as_dict() if self.mean is not None else {"value": None, "low": None, "high": None}
        noise = self.noise.as_dict() if self.noise is not None else {}
        return {**mean, "minimum_detectable": self.minimum_detectable, **noise}

    def flat(self) -> dict[str, object]:
        """Flat metrics; none where nothing was compared, so that no gate passes on it."""
        if self.mean is None:
            return {}
        noise = self.noise
        return {
            **self.mean.named("mean_difference"),
            "minimum_detectable": self.minimum_detectable,
            **named("noise_floor", noise.floor if noise is not None else None),
            **named("effect_over_noise", noise.effect if noise is not None else None),
        }


@dataclass(frozen=True)
class AlignmentSummary:
    """How much of the prompts could be compared."""

    mean_share_aligned: float
    least_share_aligned: float
    pairs_with_unaligned_tokens: int


@dataclass(frozen=True)
class ActivationSummary:
    """Mean differences from the first difference on: overall, by component, by layer key."""

    pairs: int
    templates: int
    control_pairs: int
    overall: Difference
    components: Mapping[str, Difference]
    layers: Mapping[str, Difference]
    alignment: AlignmentSummary
    warnings: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "scope": "from_first_difference",
            "pairs": self.pairs,
            "templates": self.templates,
            "control_pairs": self.control_pairs,
            "confidence": 0.95,
            "overall": self.overall.as_dict(),
            "components": {name: entry.as_dict() for name, entry in self.components.items()},
            "layers": {name: entry.as_dict() for name, entry in self.layers.items()},
            "alignment": asdict(self.alignment),
            "warnings": list(self.warnings),
        }

    def flat(self) -> dict[str, object]:
        """Flat metrics."""
        return {
            "pairs": self.pairs,
            "templates": self.templates,
            "control_pairs": self.control_pairs,
            **self.overall.flat(),
            "share_aligned": self.alignment.mean_share_aligned,
        }


@dataclass(frozen=True)
class RankedNeuron:
    """One neuron: ``mean_difference`` is signed (second − first prompt); nulls where nothing was tested."""

    layer: int
    neuron: int
    mean_difference: float
    output_effect: float
    t: float | None
    p_value: float | None
    q_value: float | None
    significant: bool
    consistency: float


@dataclass(frozen=True)
class RankedNeurons:
    """The neurons that react most, and how many of all react consistently."""

    component: str
    unit: str
    units: int
    tested: int
    significant: int
    false_discovery_rate: float
    neurons: tuple[RankedNeuron, ...]
    warnings: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        found = asdict(self)
        return {**found, "neurons": list(found["neurons"]), "warnings": list(self.warnings)}

    def flat(self) -> dict[str, object]:
        """Flat metrics; no number of significant neurons where none was tested."""
        return {
            "neurons_tested": self.tested,
            "neurons_significant": self.significant if self.tested else None,
        }
