"""What calibration measures of the experts of a mixture: how often they are chosen, and what they add."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from optipfair_engine.errors import CalibrationError, UnsupportedModelError


class ExpertScores:
    """Of each expert of a layer: the tokens that were sent to it, and its outputs' norms times their gates.

    REAP's score (arXiv 2510.13999, equation 9) of expert j is the mean of g_j(x)·‖f_j(x)‖₂ over the tokens x
    that are sent to it. Sums are formed in float64, so that they don't depend on the batches.
    """

    def __init__(self, num_experts: int) -> None:
        self.num_experts = num_experts
        self.gated: Tensor | None = None
        self.routed: Tensor | None = None
        self.tokens = 0

    def update(self, chosen: Tensor, gates: Tensor, norms: Tensor) -> None:
        """Add tokens: numbers of experts, their gates, their outputs' norms, each ``[tokens, k]``."""
        if self.gated is None or self.routed is None:
            self.gated = torch.zeros(self.num_experts, dtype=torch.float64, device=chosen.device)
            self.routed = torch.zeros_like(self.gated)
        flat = chosen.flatten()
        added = (gates.double() * norms.double()).flatten()
        self.gated = self.gated.index_add(0, flat, added)
        self.routed = self.routed.index_add(0, flat, torch.ones_like(added))
        self.tokens += len(chosen)

    def merge(self, other: ExpertScores) -> None:
        """Add what another accumulator has seen."""
        if other.gated is not None and other.routed is not None:
            self.gated = other.gated.clone() if self.gated is None else self.gated + other.gated
            self.routed = other.routed.clone() if self.routed is None else self.routed + other.routed
        self.tokens += other.tokens

    def frequency(self) -> Tensor:
        """How many tokens were sent to each expert ``[experts]``, in float64 on the CPU.

        Raises:
            CalibrationError: no token reached the layer.
        """
        if self.routed is None or self.tokens == 0:
            raise CalibrationError("No calibration token reached the layer.")
        return self.routed.cpu()

    def reap(self) -> Tensor:
        """REAP's score of each expert ``[experts]``, in float64 on the CPU; 0 where no token was sent.

        Raises:
            CalibrationError: no token reached the layer, or an output was not finite.
        """
        if self.gated is None:
            raise CalibrationError("No calibration token reached the layer.")
        scores = self.gated.cpu() / self.frequency().clamp(min=1)
        if not torch.isfinite(scores).all():
            raise CalibrationError("An expert's output is NaN or infinite on the calibration text.")
        return scores


def routed(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """What ``ExpertScores.update`` takes, of one call of a layer's experts.

    The module itself computes what each of the k experts of a token adds (with a gate of 1), one of them at
    a time: whatever its implementation and activation are, the norms are those of the model.

    Raises:
        UnsupportedModelError: it is called in another way than the families here call it.
    """
    hidden, chosen, gates = _call_of(args, kwargs)
    norms = []
    for place in range(chosen.shape[1]):
        one = chosen[:, place : place + 1]
        # forward, and not the call: hooks are for the model's own calls
        output = module.forward(hidden, one, torch.ones_like(one, dtype=gates.dtype))
        norms.append(torch.linalg.vector_norm(output.float(), dim=-1))
    return [chosen, gates, torch.stack(norms, dim=1)]


def _call_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    given = (*args, *kwargs.values())
    if len(given) < 3 or not all(isinstance(value, Tensor) for value in given[:3]):
        raise UnsupportedModelError("experts were called without tokens, their choice of experts and gates")
    hidden, chosen, gates = given[:3]
    if chosen.is_floating_point() or chosen.shape != gates.shape or chosen.dim() != 2:
        raise UnsupportedModelError("experts were called with gates of another shape than their choice")
    return hidden, chosen, gates
