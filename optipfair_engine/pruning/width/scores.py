"""How important an intermediate neuron is: scores from weights, and from weights with activations.

``g`` and ``u`` are the rows of the gate and up weights ``[I, H]``, ``d`` the columns of the down weight
``[H, I]``, and ``x_norm`` ``[I]`` the root of the total squared input of ``down_proj`` over the
calibration's unmasked tokens. All scores are computed in float32 (float64 weights stay), a larger one is
more important, and every result is ``[I]``.

Sources: P. Martra, "Fragile Knowledge, Robust Instruction-Following" (arXiv:2512.22671) for the range
methods, and "CFSP" (arXiv:2409.13199v2, eq. 8) for the hybrid and the additive form.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch

from optipfair_engine.errors import InvalidOptionError, NonFiniteWeightsError

if TYPE_CHECKING:
    from torch import Tensor

    from optipfair_engine.architectures.view import MlpWeights

#: Keeps a layer whose weights are all zero from dividing by zero.
_TINY = 1e-8


def _wide(weight: Tensor) -> Tensor:
    return weight.detach() if weight.dtype == torch.float64 else weight.detach().float()


def _norm(weight: Tensor, order: int, dim: int = 1) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(_wide(weight), ord=order, dim=dim)
    return norm


def peak_to_peak(weight: Tensor, dim: int = 1) -> Tensor:
    """``max + |min|`` along ``dim`` in float32 or wider, exact for bf16 and fp16; NaN stays NaN."""
    # two passes: for bf16 they take a third of the time of one aminmax
    low, high = torch.amin(weight.detach(), dim=dim), torch.amax(weight.detach(), dim=dim)
    return _wide(high) + _wide(low).abs()


def maw(gate: Tensor, up: Tensor) -> Tensor:
    """MAW, also called PPM: ``max(g) + |min(g)| + max(u) + |min(u)|``."""
    return peak_to_peak(gate) + peak_to_peak(up)


def vow(gate: Tensor, up: Tensor) -> Tensor:
    """VOW: the unbiased variances, ``var(g) + var(u)``."""
    return _wide(gate).var(dim=1) + _wide(up).var(dim=1)


def pon(gate: Tensor, up: Tensor) -> Tensor:
    """PON: the product of L1 norms, ``‖g‖₁ · ‖u‖₁``."""
    return _norm(gate, 1) * _norm(up, 1)


def l2(gate: Tensor, up: Tensor) -> Tensor:
    """L2: the sum of the L2 norms, ``‖g‖₂ + ‖u‖₂``."""
    return _norm(gate, 2) + _norm(up, 2)


def hybrid_maw(gate: Tensor, up: Tensor, down: Tensor, x_norm: Tensor) -> Tensor:
    """Data-driven MAW: ``(R(g)/max R(g) + R(u)/max R(u) + R(d)/max R(d)) · X`` with ``R = max + |min|``."""
    ranges = (peak_to_peak(gate), peak_to_peak(up), peak_to_peak(down, dim=0))
    structural = sum((r / (r.max() + _TINY) for r in ranges), start=torch.zeros_like(ranges[0]))
    return structural * x_norm.to(structural)


def cfsp(down: Tensor, x_norm: Tensor) -> Tensor:
    """CFSP's additive form (eq. 8): ``X_i / ΣX · Σ_j |d_ji| / Σ_i |d_ji|``.

    The paper adds ``Σ_j |u_ij| / Σ_j |u_ij|`` and the same of the gate, which are 1 for every neuron. They
    are left out: they change no ranking, and beside them the data term would lose most of its digits in
    float32.
    """
    shares = _wide(down).abs()
    shares = shares / (shares.sum(dim=1, keepdim=True) + _TINY)
    x = x_norm.to(shares)
    return shares.sum(dim=0) * x / (x.sum() + _TINY)


def plain_norm(down: Tensor, x_norm: Tensor) -> Tensor:
    """A plain MLP's data-driven score: ``‖d‖₂ · X``."""
    return _norm(down, 2, dim=0) * x_norm.to(device=down.device, dtype=_wide(down).dtype)


#: Scores from the weights alone, of two weight matrices.
STATIC_METHODS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "MAW": maw,
    "PPM": maw,
    "VOW": vow,
    "PON": pon,
    "L2": l2,
}

#: Scores from weights and activations.
DATA_DRIVEN_METHODS: Mapping[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "MAW": hybrid_maw,
    "PPM": hybrid_maw,
    "CFSP": lambda _gate, _up, down, x_norm: cfsp(down, x_norm),
}

_PLAIN: Mapping[str, Callable[[Tensor], Tensor]] = {
    "MAW": peak_to_peak,
    "PPM": peak_to_peak,
    "VOW": lambda up: _wide(up).var(dim=1),
    "PON": lambda up: _norm(up, 1),
    "L2": lambda up: _norm(up, 2),
}


def neuron_scores(mlp: MlpWeights, method: str, x_norm: Tensor | None = None) -> Tensor:
    """The scores ``[I]`` of one MLP's neurons, gated or plain, with activations when ``x_norm [I]`` is given.

    Raises:
        InvalidOptionError: an unknown method, or one that needs (or can't use) activations.
        NonFiniteWeightsError: a weight that the score reads is NaN or infinite; the text names it.
    """
    gate, up, down = mlp.gate_weight, mlp.up_weight, mlp.down_weight
    if x_norm is None:
        if method not in STATIC_METHODS:
            raise InvalidOptionError(f"a score of neurons by {method!r} needs calibration data")
        scores = _PLAIN[method](up) if gate is None else STATIC_METHODS[method](gate, up)
    elif method not in DATA_DRIVEN_METHODS:
        raise InvalidOptionError(f"a score of neurons by {method!r} can't use calibration data")
    else:
        scores = (
            plain_norm(down, x_norm) if gate is None else DATA_DRIVEN_METHODS[method](gate, up, down, x_norm)
        )
    if not bool(torch.isfinite(scores).all()):
        raise NonFiniteWeightsError(_blame(mlp))
    return scores


def _blame(mlp: MlpWeights) -> str:
    weights = {"gate": mlp.gate_weight, "up": mlp.up_weight, "down": mlp.down_weight}
    for role, weight in weights.items():
        if weight is not None and not bool(torch.isfinite(weight).all()):
            return f"{mlp.names[role]} holds NaN or infinite values; scores from it would be meaningless"
    return (
        f"the importance scores of {mlp.names['up']} are not finite, though its weights are; are activations?"
    )


def removal_order(scores: Tensor) -> Tensor:
    """Neurons by ascending score; among equals the higher index goes first, as ``top_indices`` has it."""
    return torch.sort(scores, descending=True, stable=True).indices.flip(0).cpu()


def top_indices(scores: Tensor, count: int, tie_break: str = "lower_index") -> tuple[int, ...]:
    """The sorted indices of the ``count`` largest scores.

    Equal scores at the edge go to the lower index, on any device; with ``tie_break="topk"`` to those that
    ``torch.topk`` happens to return, which is what published optipfair 0.4.2 keeps.
    """
    if tie_break == "topk":
        order = torch.topk(scores, count).indices
    else:
        order = torch.sort(scores, descending=True, stable=True).indices[:count]
    return tuple(order.sort().values.tolist())
