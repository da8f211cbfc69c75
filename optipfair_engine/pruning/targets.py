"""A size that the whole model may have, in parameters or bytes; what a plan says of the size asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from optipfair_engine.errors import InvalidOptionError

if TYPE_CHECKING:
    from torch import Tensor

    from optipfair_engine.architectures.view import WeightsView
    from optipfair_engine.options.prune import PruneOptions


@dataclass(frozen=True)
class Target:
    """What the model may have, and what it has.

    Attributes:
        limit: the size asked for, in ``unit``.
        size: of the whole model as it is, in ``unit``.
        unit: ``parameters`` or ``bytes``.
    """

    limit: int
    size: int
    unit: str

    @property
    def excess(self) -> int:
        """What has to go."""
        return self.size - self.limit

    def weigh(self, tensor: Tensor) -> int:
        """What a tensor counts for."""
        return tensor.numel() * (tensor.element_size() if self.unit == "bytes" else 1)

    def unreachable(self, least: int, by: str) -> InvalidOptionError:
        """The error for a target below the ``least`` size that can be reached ``by`` removing something."""
        return InvalidOptionError(
            f"a target of {self.limit} {self.unit} can't be reached by removing {by}: "
            f"at least {least} {self.unit} stay"
        )


def target_of(view: WeightsView, options: PruneOptions) -> Target | None:
    """The target size that options name; ``None`` where a percentage or a rate says the size.

    Raises:
        InvalidOptionError: the target isn't below the model's size.
    """
    if options.target_parameters is not None:
        limit, unit = options.target_parameters, "parameters"
    elif options.target_bytes is not None:
        limit, unit = options.target_bytes, "bytes"
    else:
        return None
    target = Target(limit, 0, unit)
    target = Target(limit, sum(map(target.weigh, view.model.parameters())), unit)
    if target.excess <= 0:
        raise InvalidOptionError(f"the target of {limit} {unit} is not below the model's {target.size}")
    return target
