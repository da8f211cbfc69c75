"""Which part of calibration one process takes, where several calibrate together; alone it takes all of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from optipfair_engine.errors import CalibrationError

T = TypeVar("T")


@dataclass(frozen=True)
class Share:
    """The part of process ``rank`` of ``size``: of batches every ``size``-th, from number ``rank`` on.

    What the processes tell each other is left to ``processes.together``; here there is nobody to talk to.
    """

    rank: int = 0
    size: int = 1

    def takes(self, number: int) -> bool:
        """Whether the batch with this number, counted from 0, is among those of this process."""
        return number % self.size == self.rank

    def of(self, items: Sequence[T]) -> list[T]:
        """What this process takes of a list of batches."""
        return list(items[self.rank :: self.size])

    def wait(self) -> None:
        """Wait until all processes have come as far."""

    def agree(self, value: T) -> T:
        """What the first process says, in all of them."""
        return value

    def total(self, numbers: Sequence[float]) -> list[float]:
        """Sums of numbers over all processes."""
        self._refuse_others()
        return list(numbers)

    def add_up(self, accumulators: Mapping[str, Any]) -> None:
        """Make each accumulator one of what all processes have seen.

        Its tensors and its ``tokens`` are sums; a process that has seen nothing has ``None`` for a tensor.
        """
        del accumulators
        self._refuse_others()

    def _refuse_others(self) -> None:
        if self.size > 1:
            raise CalibrationError(
                f"the calibration of {self.size} processes ended before all of it was done: start it again"
            )


ALONE = Share()
