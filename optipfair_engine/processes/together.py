"""The share of one rank among others, which it meets through torch.distributed."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from optipfair_engine.calibration.share import Share

T = TypeVar("T")

_file_store: Any = dist.FileStore  # type: ignore[attr-defined]  # public, but not exported to mypy
#: How long a rank waits for the others: they come to each layer's end at about the same time.
_PATIENCE = timedelta(hours=2)


def join(meeting: Path, rank: int, size: int, device: torch.device) -> Together:
    """Meet the other ranks by a file that all of them see: gloo on CPUs, NCCL on CUDA.

    They listen to nobody but this machine's own processes: gloo is bound to the loopback interface, and the
    file stands in for the network store of torch's usual rendezvous.
    """
    # read by gloo's native code alone
    os.putenv("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    cuda = device.type == "cuda"
    dist.init_process_group(
        "nccl" if cuda else "gloo",
        store=_file_store(str(meeting), size),
        rank=rank,
        world_size=size,
        timeout=_PATIENCE,
        device_id=device if cuda else None,
    )
    return Together(rank, size, device)


@dataclass(frozen=True)
class Together(Share):
    """A share whose sums are formed over all ranks, in the fixed order of torch's all-reduce."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def wait(self) -> None:
        """Wait until all ranks have come as far."""
        dist.barrier()

    def agree(self, value: T) -> T:
        """What the first rank says."""
        told: list[Any] = [value]
        dist.broadcast_object_list(told, src=0)
        first: T = told[0]
        return first

    def total(self, numbers: Sequence[float]) -> list[float]:
        """Sums of numbers over all ranks, in float64."""
        summed = torch.tensor(list(numbers), dtype=torch.float64, device=self.device)
        dist.all_reduce(summed)
        return list(summed.tolist())

    def add_up(self, accumulators: Mapping[str, Any]) -> None:
        """Make each accumulator, in every rank, one of what all ranks have seen."""
        for name in sorted(accumulators):
            self._add_up(accumulators[name])

    def _add_up(self, accumulator: Any) -> None:
        state = vars(accumulator)
        mine = {
            name: (tuple(value.shape), value.dtype)
            for name, value in state.items()
            if isinstance(value, Tensor)
        }
        told: list[Any] = [None] * self.size
        dist.all_gather_object(told, (mine, accumulator.tokens))
        shapes = {name: shape for tensors, _ in told for name, shape in tensors.items()}
        for name in sorted(shapes):
            size, dtype = shapes[name]
            # a rank whose samples are all held out, or none of them, has nothing to add
            part = state[name] if name in mine else torch.zeros(size, dtype=dtype, device=self.device)
            state[name] = part.contiguous()
            dist.all_reduce(state[name])
        accumulator.tokens = sum(tokens for _, tokens in told)
