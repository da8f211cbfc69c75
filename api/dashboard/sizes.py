"""How much a prune takes away or leaves: what the form's number counts, and how a list says it in short."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Size:
    """One of the fields of a spec that say how much goes or stays.

    Attributes:
        unit: behind the number in a form.
        short: the number with what it counts, as a format.
    """

    unit: str
    short: str


SIZES: Final = {
    "pruning_percentage": Size("% of neurons, heads, experts", "{:g} %"),
    "expansion_rate": Size("% of hidden size", "expansion {:g} %"),
    "target_parameters": Size("parameters stay", "to {:,} parameters"),
    "target_bytes": Size("bytes stay", "to {:,} bytes"),
    "num_layers_to_remove": Size("layers go", "{} layers"),
    "depth_pruning_percentage": Size("% of layers go", "{:g} % of layers"),
}
