"""What a plan, its statistics and a result say of the calibration that they come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class CalibrationFacts:
    """An account of a calibration, small enough to be kept with everything that was made from it.

    Attributes:
        source: where the samples come from, in words.
        tokens: the number of unmasked tokens.
        samples: the number of samples that the texts were cut into.
        max_length: the length of a sample in tokens.
        tokens_per_feature: tokens for each input of the matrices that are fitted; of experts: for each one.
        own_samples: how many of the samples the model wrote itself; not written if there are none.
        warnings: what a reader of the result must know.
    """

    source: str
    tokens: int
    samples: int
    max_length: int
    tokens_per_feature: float
    warnings: tuple[str, ...] = ()
    own_samples: int = 0

    def to_json(self) -> dict[str, Any]:
        """The facts as plain JSON."""
        stated = {**vars(self), "warnings": list(self.warnings)}
        if not self.own_samples:
            del stated["own_samples"]
        return stated

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> CalibrationFacts:
        """Read what ``to_json`` gave.

        Raises:
            KeyError, TypeError: a fact is missing, or there is one that is unknown.
        """
        return cls(**{**data, "warnings": tuple(data["warnings"])})
