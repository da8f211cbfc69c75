"""The reload check without its other process, which costs seconds and has tests of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def in_this_process(
    folder: Any, token_ids: Any, device: str, attention: str | None, compute_dtype: Any
) -> Tensor:
    """Logits of a saved model (a ``ReloadRunner``): the folder is read anew, but here."""
    from optipfair_engine.checkpoints.reload import logits_of

    return logits_of(folder, token_ids, device=device, attention=attention, compute_dtype=compute_dtype)
