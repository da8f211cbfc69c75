"""How well a causal language model predicts each next token: what perplexity is made of."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from optipfair_engine.errors import UnsupportedModelError


def perplexity_of(mean_loss: float) -> float:
    """Perplexity from the mean loss in nats a token."""
    # a destroyed model's loss can exceed what exp() holds: infinity is then the honest number
    return math.exp(mean_loss) if mean_loss < 700 else math.inf


def check_predicts_next_token(model: Any) -> None:
    """Refuse models whose logits aren't predictions of the next token from those before it.

    Raises:
        UnsupportedModelError: the text names the family.
    """
    if model.config.is_encoder_decoder or not model.can_generate():
        raise UnsupportedModelError(
            f"{model.config.model_type}: {type(model).__name__} is no causal language model, "
            "so it has no perplexity over a text"
        )


def token_losses(logits: Tensor, input_ids: Tensor) -> Tensor:
    """Cross-entropy in nats of each next token ``[samples, tokens − 1]``; ``[…, tokens, vocab]`` in."""
    # one row a token: with the classes in the middle it takes four times as long
    targets = input_ids[:, 1:]
    rows = logits[:, :-1].flatten(0, 1).float()
    return F.cross_entropy(rows, targets.flatten(), reduction="none").view(targets.shape)
