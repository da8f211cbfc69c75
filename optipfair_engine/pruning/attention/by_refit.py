"""Choosing attention heads by what the refitted output projection could still repeat without them.

A unit is a set of columns of ``o_proj`` (a query head, or a KV group's query heads). With A = G + λD,
removing the columns R from W costs tr(W_R [(A⁻¹)_RR]⁻¹ W_Rᵀ) after a refit of the others: exact for any set,
so sets can be compared without solving for each.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from optipfair_engine.errors import InvalidOptionError
from optipfair_engine.plans.plan import HeadPlan
from optipfair_engine.solving.refit import cholesky, ridge_diagonal, ridged

#: Below this many combinations all are compared; above, a greedy choice is improved by swaps.
EXHAUSTIVE_LIMIT = 256

_SWAP_ROUNDS = 4


class RemovalCost:
    """Squared output error (in A) of removing sets of columns from W ``[H, I]``, after a refit."""

    def __init__(self, weight: Tensor, gram: Tensor, ridge: float) -> None:
        self.weight = weight.to(gram.device).double()
        matrix = ridged(gram, ridge, ridge_diagonal(gram))
        self.inverse = torch.cholesky_inverse(cholesky(matrix))

    def __call__(self, columns: Sequence[int]) -> float:
        """The cost of removing these columns together."""
        gone = torch.tensor(columns, device=self.weight.device)
        factor = cholesky(self.inverse[gone][:, gone])
        half = torch.linalg.solve_triangular(factor, self.weight[:, gone].T, upper=False)
        return float(half.square().sum())


def select_heads(
    weight: Tensor,
    gram: Tensor,
    *,
    num_heads: int,
    num_key_value_heads: int,
    unit: str,
    kept: int,
    ridge: float = 1e-2,
) -> HeadPlan:
    """The heads that stay, by least-squares error.

    Args:
        weight: the output projection ``[H, num_heads·head_dim]``.
        gram: G of its inputs.
        num_heads: query heads.
        num_key_value_heads: KV groups; query head h is in group ``h // (num_heads // num_key_value_heads)``.
        unit: ``kv_group`` keeps ``kept`` whole groups, ``query_head`` keeps ``kept`` heads of each group.
        kept: see ``unit``.
        ridge: λ of the refit that is foreseen.
    """
    per_group, head_dim = num_heads // num_key_value_heads, weight.shape[1] // num_heads
    groups = [list(range(g * per_group, (g + 1) * per_group)) for g in range(num_key_value_heads)]
    cost = RemovalCost(weight, gram, ridge)
    if unit == "kv_group":
        units = [_columns(group, head_dim) for group in groups]
        gone = select_units(cost, units, [(range(len(units)), len(units) - kept)])
        kv = tuple(g for g in range(len(units)) if g not in gone)
        return HeadPlan(tuple(h for g in kv for h in groups[g]), kv)
    if unit != "query_head":
        raise InvalidOptionError(f"attention_unit must be kv_group or query_head; got {unit!r}")
    units = [_columns([head], head_dim) for head in range(num_heads)]
    gone = select_units(cost, units, [(group, per_group - kept) for group in groups])
    return HeadPlan(tuple(h for h in range(num_heads) if h not in gone), tuple(range(num_key_value_heads)))


def select_units(
    cost: RemovalCost, units: Sequence[Sequence[int]], quotas: Sequence[tuple[Sequence[int], int]]
) -> set[int]:
    """The units to remove: from each (members, count) ``count`` of them, at the least joint cost."""
    quotas = [(list(members), count) for members, count in quotas if count > 0]
    if not quotas:
        return set()
    if math.prod(math.comb(len(members), count) for members, count in quotas) <= EXHAUSTIVE_LIMIT:
        choices = (itertools.combinations(members, count) for members, count in quotas)
        sets = (set(itertools.chain.from_iterable(choice)) for choice in itertools.product(*choices))
        return min(sets, key=lambda gone: (_joint(cost, units, gone), sorted(gone)))
    return _improve_by_swaps(cost, units, quotas, _greedy(cost, units, quotas))


def _greedy(
    cost: RemovalCost, units: Sequence[Sequence[int]], quotas: Sequence[tuple[Sequence[int], int]]
) -> set[int]:
    gone: set[int] = set()
    left = dict(enumerate(count for _, count in quotas))
    while any(left.values()):
        options = [(unit, q) for q, n in left.items() if n for unit in quotas[q][0] if unit not in gone]
        best, quota = min(options, key=lambda option: (_joint(cost, units, gone | {option[0]}), option[0]))
        gone.add(best)
        left[quota] -= 1
    return gone


def _improve_by_swaps(
    cost: RemovalCost,
    units: Sequence[Sequence[int]],
    quotas: Sequence[tuple[Sequence[int], int]],
    gone: set[int],
) -> set[int]:
    """Exchange a removed unit for a kept one of the same quota while that lowers the cost."""
    best = _joint(cost, units, gone)
    for _ in range(_SWAP_ROUNDS):
        improved = False
        for members, _count in quotas:
            for out, back in _pairs(members, gone):
                if out in gone or back not in gone:
                    continue
                candidate = (gone - {back}) | {out}
                if (value := _joint(cost, units, candidate)) < best:
                    gone, best, improved = candidate, value, True
        if not improved:
            break
    return gone


def _pairs(members: Iterable[int], gone: set[int]) -> list[tuple[int, int]]:
    members = list(members)
    return [(out, back) for out in members if out not in gone for back in members if back in gone]


def _joint(cost: RemovalCost, units: Sequence[Sequence[int]], gone: Iterable[int]) -> float:
    return cost([column for unit in sorted(gone) for column in units[unit]])


def _columns(heads: Iterable[int], head_dim: int) -> list[int]:
    return [head * head_dim + i for head in heads for i in range(head_dim)]


def head_columns(heads: HeadPlan, head_dim: int) -> Tensor:
    """The columns of the output projection that the kept query heads feed (int64, ascending)."""
    return torch.tensor(_columns(heads.query, head_dim))
