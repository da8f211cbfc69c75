"""Ordering a layer's neurons: what it takes, beside the same by one update of the inverse a block.

    python benchmarks/ordering.py [--sizes 1536,8192,14336] [--threads N] [--extrapolate]

Old is the procedure until this was written: LAPACK's inverse, and after each block of removals the Schur
update of the whole matrix. New is ``solving.obs.eliminate``. Both remove all inputs of the same random layer,
whose activations have strong and weak directions and unequal energies, with a quarter as many outputs as
inputs. Times are of the processor (all threads) and of the clock; the curves are compared at every width.
``--extrapolate`` measures sizes above 8192 on a layer of half the size, and multiplies times by eight.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import TypeVar

import torch
from sides import processor
from torch import Tensor

from optipfair_engine.pruning.width.calibrated import SELECTION_RIDGE, SELECTION_SCALE
from optipfair_engine.solving.obs import BLOCKS, LARGEST_BLOCK, eliminate
from optipfair_engine.solving.refit import cholesky, cholesky_of, quadratic, ridge_diagonal, ridged

_Found = TypeVar("_Found")

#: Above it, ``--extrapolate`` measures half the size.
LARGEST_MEASURED = 8192


def main() -> None:
    """Print both sides at each size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sizes", default="1536,8192,14336", help="numbers of inputs, with commas")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--extrapolate", action="store_true", help="half the size above 8192, times by eight")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{processor()}, {options.threads} threads")
    for size in map(int, options.sizes.split(",")):
        _compare(size, halved=options.extrapolate and size > LARGEST_MEASURED)


def _compare(size: int, *, halved: bool) -> None:
    weight, gram = random_layer(size // 2 if halved else size)
    (old_order, old_errors), old = _timed(lambda: one_update_a_block(weight, gram))
    new_result, new = _timed(lambda: eliminate(weight, gram, SELECTION_RIDGE, scale=SELECTION_SCALE))
    factor = 8 if halved else 1
    said = f" (extrapolated from {size // 2}: times by 8)" if halved else ""
    print(f"{size} inputs{said}")
    for name, (cpu, wall) in {"old": old, "new": new}.items():
        print(f"  {name}: {factor * cpu:8.1f} processor seconds, {factor * wall:8.1f} s")
    print(f"  new / old: {new[0] / old[0]:.2f} of the processor, {new[1] / old[1]:.2f} of the clock")
    same = int((new_result.order == old_order).sum())
    start = len(old_errors) // 50  # before it, errors are rounding
    worst = float((new_result.errors / old_errors - 1)[start:].max())
    print(f"  order: {same} of {len(old_order)} at the same place; curve at worst {100 * worst:+.4f} %")


def _timed(run: Callable[[], _Found]) -> tuple[_Found, tuple[float, float]]:
    cpu, wall = time.process_time(), time.perf_counter()
    found = run()
    return found, (time.process_time() - cpu, time.perf_counter() - wall)


def random_layer(size: int) -> tuple[Tensor, Tensor]:
    """W ``[I / 4, I]`` and a Gram matrix ``[I, I]``, float32."""
    generator = torch.Generator().manual_seed(0)
    rank = size // 4
    x = torch.randn(size, rank, generator=generator) @ torch.randn(rank, size, generator=generator)
    x += rank**0.5 * 0.5 * torch.randn(size, size, generator=generator)
    x *= torch.randn(size, generator=generator).exp()
    return torch.randn(rank, size, generator=generator), x.T @ x


def one_update_a_block(weight: Tensor, gram: Tensor) -> tuple[Tensor, Tensor]:
    """The order of removal, and the error of each width, as ``eliminate`` found them before."""
    size = len(gram)
    block = min(LARGEST_BLOCK, max(1, size // BLOCKS))
    scale = ridge_diagonal(gram, SELECTION_SCALE)
    factor = cholesky_of(lambda: ridged(gram, SELECTION_RIDGE, scale))
    inverse = torch.cholesky_inverse(factor, out=factor).mT
    dense = weight.double().T.contiguous()
    now, index = dense.clone(), torch.arange(size)
    gone = torch.zeros(size, dtype=torch.bool)
    order: list[Tensor] = []
    errors, cost, removed, moved, total = [0.0], 0.0, 0.0, 0.0, quadratic(weight.double(), gram)
    pending: list[Tensor] = []
    while len(index):
        score = torch.linalg.vector_norm(now, dim=1).square() / inverse.diagonal()
        score[gone] = torch.inf
        places = torch.sort(score, stable=True).indices[: min(block, int((~gone).sum()))]
        small = cholesky(inverse[places][:, places])
        half = torch.linalg.solve_triangular(small, now[places], upper=False)
        columns = torch.linalg.solve_triangular(small, inverse[places], upper=False)
        now.addmm_(columns.T, half, alpha=-1)
        inverse.addmm_(columns.T, columns, alpha=-1)
        now[places], inverse[places], inverse[:, places], gone[places] = 0, 0, 0, True
        order.append(index[places])
        penalty = dense[places].square().sum(1) * scale[order[-1]]
        pending.append(torch.stack([half.square().sum(1), penalty]))
        if sum(part.shape[1] for part in pending) >= max(1, size // 48) or bool(gone.all()):
            steps = torch.cat(pending, dim=1).cumsum(1)
            shift = float((((now - dense).square().sum(1) * scale[index])[~gone]).sum())
            share = torch.linspace(0, 1, steps.shape[1] + 1, dtype=torch.float64)[1:]
            ridge_share = removed + steps[1] + moved + (shift - moved) * share
            errors += ((cost + steps[0] - SELECTION_RIDGE * ridge_share) / total).clamp_min(0).tolist()
            cost, removed, moved = cost + float(steps[0, -1]), removed + float(steps[1, -1]), shift
            pending = []
        if int(gone.sum()) * 8 > len(gone) or bool(gone.all()):
            stays = (~gone).nonzero().squeeze(1)
            inverse = inverse[stays][:, stays].contiguous()
            now, dense, index, gone = now[stays], dense[stays], index[stays], gone[stays]
    return torch.cat(order), torch.tensor(errors, dtype=torch.float64)


if __name__ == "__main__":
    main()
