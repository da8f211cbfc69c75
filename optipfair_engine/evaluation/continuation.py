"""Perplexity of what follows a prompt, read as it would be generated: from the cache of the prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from optipfair_engine.calibration.next_token import check_predicts_next_token, perplexity_of, token_losses
from optipfair_engine.calibration.runner import check_tokens, eval_mode
from optipfair_engine.computing.products import fast_products
from optipfair_engine.progress import Reporter, null_reporter


def prompt_length(window: Sequence[int]) -> int:
    """How many of a window's tokens are the prompt: half of them, rounded down."""
    return len(window) // 2


def continuation_perplexity(
    model: Any,
    windows: Sequence[Sequence[int]],
    report: Reporter = null_reporter,
    *,
    following: Callable[[], AbstractContextManager[Any]] = nullcontext,
    named: str = "continuation",
) -> float:
    """Perplexity of each window's second half, the first being a prompt; over all tokens of second halves.

    Args:
        model: a causal language model with a cache; its train/eval mode is restored.
        windows: token ids, at least two in each.
        report: progress, stage "evaluate", one step a window.
        following: the block in which what follows a prompt is read, in one call.
        named: what progress calls it.

    Raises:
        UnsupportedModelError: the model predicts no next token.
        InvalidOptionError, TokenizerError: see ``check_tokens``.
    """
    check_predicts_next_token(model)
    device = next(model.parameters()).device
    loss, tokens = 0.0, 0
    with eval_mode(model), torch.no_grad(), fast_products(model):
        for number, window in enumerate(windows, 1):
            ids = torch.tensor(window)[None]
            check_tokens(model, ids)
            losses = _losses(model, ids.to(device), prompt_length(window), following)
            loss += float(losses.double().sum())
            tokens += losses.numel()
            report("evaluate", number, len(windows), f"{named} {number} of {len(windows)}")
    return perplexity_of(loss / tokens)


def _losses(
    model: Any, ids: Tensor, split: int, following: Callable[[], AbstractContextManager[Any]]
) -> Tensor:
    """Nats of each token from position ``split`` on: the first is predicted by the prompt's last one."""
    prompt = model(input_ids=ids[:, :split], use_cache=True)
    with following():
        rest = model(input_ids=ids[:, split:], past_key_values=prompt.past_key_values, use_cache=True)
    logits = torch.cat([prompt.logits[:, -1:], rest.logits], dim=1)
    return token_losses(logits, ids[:, split - 1 :])
