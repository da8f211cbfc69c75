"""Optimal Brain Surgeon selection of a projection's inputs, and the error of every width on the way.

With A = G + λD, removing the inputs B costs tr(W_B [(A⁻¹)_BB]⁻¹ W_Bᵀ) after a refit
(Hassibi & Stork 1993; in blocks as in ZipLM, Kurtic et al. 2023). The inverse is kept for the remaining
inputs by Schur updates, so one elimination from I to 0 gives an order of removal and every width's error.

Large layers are computed in float32. With D each input's own entry the diagonal of A⁻¹ falls to no less than
λ/(1+λ) of itself while inputs go, so that differences lose two decimal digits at λ = 0.01, of the seven that
float32 has. With any other D nothing bounds that.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from optipfair_engine.errors import InvalidOptionError
from optipfair_engine.solving.inverse import inverse_of, narrow_inverse_of, panels
from optipfair_engine.solving.refit import (
    RidgeScale,
    cholesky,
    quadratic,
    ridge_diagonal,
    ridged,
)

#: A block is this part of a layer's inputs, at most ``LARGEST_BLOCK``: 8 of 1536 gave a perplexity better by
#: 0.15 % than 16 at 40 % (SmolLM2-135M), and as good as 4.
BLOCKS = 192
LARGEST_BLOCK = 32

#: The matrix is updated after this part of the inputs has gone, at most ``LARGEST_DELAY``: products of so
#: many rows run at full speed, and more would have to be looked through for every block.
DELAYS = 16
LARGEST_DELAY = 512

#: How often the ridge's share of the errors is measured on the way.
MEASURED = 48

#: From so many inputs on, and from such a ridge relative to each input's own entry, float32 is used.
NARROW_SIZE = 1024
NARROW_RIDGE = 1e-2


@dataclass(frozen=True)
class Elimination:
    """An order of removal with the error of each width.

    Attributes:
        order: input indices, first removed first ``[I − smallest]``.
        errors: relative squared output error after 0, 1, … removals ``[I − smallest + 1]``, refitted.
        size: I.
    """

    order: Tensor
    errors: Tensor
    size: int

    def kept(self, width: int) -> Tensor:
        """The inputs that remain at a width, ascending."""
        removed = self.size - width
        if not 0 <= removed <= len(self.order):
            raise InvalidOptionError(
                f"width must be in [{self.size - len(self.order)}, {self.size}]: {width}"
            )
        remains = torch.ones(self.size, dtype=torch.bool)
        remains[self.order[:removed]] = False
        return remains.nonzero().squeeze(1)


def eliminate(
    weight: Tensor,
    gram: Tensor,
    ridge: float = 1e-2,
    *,
    order: Tensor | None = None,
    block_size: int | None = None,
    smallest: int = 0,
    scale: RidgeScale = "median",
) -> Elimination:
    """Remove inputs, block by block, those that cost least first (or in a given order), down to ``smallest``.

    Args:
        weight: W ``[H, I]``.
        gram: G ``[I, I]``.
        ridge: λ relative to D, of selection and of the refit that the errors speak of.
        order: removal order ``[I]`` instead of OBS's.
        block_size: removals between two updates of the inverse; by the layer's size unless given.
        smallest: the width to stop at.
        scale: D, see :func:`ridge_diagonal`.
    """
    size = gram.shape[0]
    block = min(LARGEST_BLOCK, max(1, size // BLOCKS)) if block_size is None else block_size
    if not 0 <= smallest <= size or block < 1:
        raise InvalidOptionError(f"smallest must be in [0, {size}] and block_size at least 1")
    state = _State(weight, gram, ridge, scale, block)
    removed: list[Tensor] = []
    while (left := size - sum(map(len, removed))) > smallest:
        count = min(block, left - smallest)
        done = size - left
        chosen = state.cheapest(count) if order is None else order[done : done + count].to(gram.device)
        removed.append(chosen)
        state.remove(chosen)
    state.measure()
    sequence = torch.cat(removed).cpu() if removed else torch.zeros(0, dtype=torch.int64)
    return Elimination(sequence, torch.tensor(state.costs.errors, dtype=torch.float64), size)


class _State:
    """What remains of W and A⁻¹ while inputs are removed, in one number type; W has one row an input.

    Costs, scores and what is divided by are in float64 whichever type that is. W, the diagonal of A⁻¹ and
    what is read of its rows are those of all removals. The matrix itself is updated, and what was removed
    leaves it, once in a sixteenth of the inputs: until then the rows that are to be subtracted from it, C
    with A⁻¹ = inverse − CᵀC, wait in ``pending``.
    """

    def __init__(self, weight: Tensor, gram: Tensor, ridge: float, scale: RidgeScale, block: int) -> None:
        size = gram.shape[0]
        narrow = size >= NARROW_SIZE and ridge >= NARROW_RIDGE and scale == "coordinate"
        number = torch.float32 if narrow else torch.float64
        self.dense = weight.to(gram.device, number).T.contiguous()
        self.weight = self.dense.clone()
        self.norms = torch.linalg.vector_norm(self.weight, dim=1)
        self.scale = ridge_diagonal(gram, scale)
        invert = narrow_inverse_of if narrow else inverse_of
        self.inverse = invert(lambda: ridged(gram, ridge, self.scale))
        self.diagonal = self.inverse.diagonal().to(torch.float64, copy=True)
        self.index = torch.arange(size, device=gram.device)
        self.stays = torch.ones(size, dtype=torch.bool, device=gram.device)
        self.pending = self.inverse.new_empty(max(block, min(LARGEST_DELAY, size // DELAYS)), size)
        self.waiting = 0
        self.costs = _Costs(ridge, quadratic(weight.double(), gram), max(1, size // MEASURED))

    def cheapest(self, count: int) -> Tensor:
        """The inputs with the least ‖W_j‖²/(A⁻¹)_jj, the lower index first among equals."""
        score = (self.norms.double().square() / self.diagonal).masked_fill_(~self.stays, torch.inf)
        return self.index[torch.sort(score, stable=True).indices[:count]]

    def remove(self, chosen: Tensor) -> None:
        """Remove inputs (in that order), refit the others, and note what each removal costs."""
        if self.waiting + len(chosen) > len(self.pending):
            self._settle()
        gone = torch.searchsorted(self.index, chosen)
        rows = self._rows(gone)
        factor = cholesky(rows[:, gone].double())
        # row c of L⁻¹ W_B holds the extra cost of the c-th removal after those before it
        exact = torch.linalg.solve_triangular(factor, self.weight[gone].double(), upper=False)
        columns = torch.linalg.solve_triangular(factor.to(rows.dtype), rows, upper=False)
        half = exact.to(rows.dtype)
        for part in panels(len(self.index)):  # its norms while it is in the processor's cache
            moved = self.weight[part].addmm_(columns[:, part].T, half, alpha=-1)
            self.norms[part] = torch.linalg.vector_norm(moved, dim=1)
        self.weight[gone] = 0  # what is left there is rounding
        self.diagonal -= columns.square().sum(0)
        self.stays[gone] = False
        self.pending[self.waiting : self.waiting + len(gone), : len(self.index)] = columns
        self.waiting += len(gone)
        self.costs.add(exact.square().sum(1), self.dense[gone].double().square().sum(1) * self.scale[chosen])
        if self.costs.due:
            self.measure()

    def measure(self) -> None:
        """Measure the ridge's share Σ_j D_j ‖W_j − W_dense,j‖² of the inputs that stay."""
        moved = self.scale.new_zeros(())
        for rows in panels(len(self.index)):
            shift = (self.weight[rows] - self.dense[rows]).square().sum(1)
            moved += (shift * self.scale[self.index[rows]])[self.stays[rows]].sum()
        self.costs.settle(float(moved))

    def _rows(self, places: Tensor) -> Tensor:
        """Rows of A⁻¹ as all removals have left it, zero where an input has gone."""
        waiting = self.pending[: self.waiting, : len(self.index)]
        rows = self.inverse[places].addmm_(waiting[:, places].T, waiting, alpha=-1)
        return rows.mul_(self.stays)

    def _settle(self) -> None:
        """Subtract what waits, and move what remains together, within the memory of the matrix.

        It goes front to back: a row's new place is never behind its old one. Of a symmetric matrix half is
        computed, and the other half written beside it where old rows have been read.
        """
        remains = self.stays.nonzero().squeeze(1)
        width = len(remains)
        waiting = self.pending[: self.waiting, remains]
        flat = self.inverse.view(-1)
        settled = flat[: width * width].view(width, width)
        for rows in panels(width):
            lower = self.inverse[:, : int(remains[rows.stop - 1]) + 1]
            moved = lower[remains[rows]][:, remains[: rows.stop]]
            moved.addmm_(waiting[:, rows].T, waiting[:, : rows.stop], alpha=-1)
            settled[rows, : rows.stop] = moved
            settled[: rows.start, rows] = moved[:, : rows.start].T
        self.inverse, self.waiting = settled, 0
        self.weight, self.dense = self.weight[remains], self.dense[remains]
        self.index, self.stays = self.index[remains], self.stays[remains]
        self.norms, self.diagonal = self.norms[remains], self.diagonal[remains]


class _Costs:
    """The errors of removals: their cost in A less the ridge's share of it, λ tr(E D Eᵀ), E = W − W_dense.

    Of that share the part of removed inputs is known at once. That of moved ones needs a pass over W; it is
    measured ``MEASURED`` times and taken to be linear in between.
    """

    def __init__(self, ridge: float, total: float, every: int) -> None:
        self.errors: list[float] = [0.0]
        self._ridge, self._every = ridge, every
        self._total = max(total, torch.finfo(torch.float64).tiny)
        self._cost = self._removed = self._moved = 0.0
        self._pending: list[Tensor] = []
        self._count = 0

    @property
    def due(self) -> bool:
        """Whether it is time to measure."""
        return self._count >= self._every

    def add(self, costs: Tensor, removed: Tensor) -> None:
        """Note a block: cost in A, and D_j ‖W_dense,j‖², of each removal."""
        self._pending.append(torch.stack([costs, removed]))
        self._count += len(costs)

    def settle(self, moved: float) -> None:
        """The errors of all removals since the last measurement."""
        if not self._pending:
            return
        steps = torch.cat(self._pending, dim=1).cumsum(1).cpu()
        share = torch.linspace(0, 1, steps.shape[1] + 1, dtype=torch.float64)[1:]
        between = self._moved + (moved - self._moved) * share
        penalty = self._removed + steps[1] + between
        self.errors += ((self._cost + steps[0] - self._ridge * penalty) / self._total).clamp_min(0).tolist()
        self._cost += float(steps[0, -1])
        self._removed += float(steps[1, -1])
        self._moved = moved
        self._pending, self._count = [], 0
