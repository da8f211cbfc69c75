"""MAW of a checkpoint's neurons by NumPy alone: torch's import takes longer than such a prune."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

if TYPE_CHECKING:
    from optipfair_engine.architectures.view import MlpWeights
    from optipfair_engine.computing.bits import Floats


@runtime_checkable
class _Ranged(Protocol):
    def ranges(self) -> Floats | None: ...


def kept_by_ranges(mlp: MlpWeights, count: int, method: str, tie_break: str) -> tuple[int, ...] | None:
    """The neurons that ``scores`` would keep, to the bit; ``None`` where it has to be asked.

    That is where the MLP isn't one of a checkpoint, another score or another choice among equal ones is
    asked for, or a weight isn't finite (``scores`` says which).
    """
    if method not in ("MAW", "PPM") or tie_break != "lower_index" or not isinstance(mlp, _Ranged):
        return None
    scores = mlp.ranges()
    if scores is None or not bool(np.isfinite(scores).all()):
        return None
    kept: list[int] = np.sort(np.argsort(-scores, kind="stable")[:count]).tolist()
    return tuple(kept)
