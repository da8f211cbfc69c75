"""Perplexity of a causal language model over a text, by a stated protocol.

The text is tokenised once without special tokens and cut into windows of ``max_length`` tokens that start at
i·((N − max_length)//(n − 1)); each window is scored alone, its first token unpredicted. Cross-entropy is in
float32, from the model's logits and averaged over all predicted tokens (not over windows).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from optipfair_engine.calibration.next_token import check_predicts_next_token, perplexity_of, token_losses
from optipfair_engine.calibration.runner import check_tokens, eval_mode
from optipfair_engine.calibration.text import encode, share_windows, windows_from_ids
from optipfair_engine.computing.products import fast_products
from optipfair_engine.errors import InvalidOptionError, TokenizerError
from optipfair_engine.options.calibration import WINDOW_LENGTH
from optipfair_engine.progress import Reporter, null_reporter


@dataclass(frozen=True)
class PerplexityResult:
    """Perplexity with what it was measured on.

    ``mean_loss`` is in nats per predicted token, ``tokens_per_second`` the median speed of reading a window
    in the number type that was computed in (``computing.number_type``).
    """

    perplexity: float
    mean_loss: float
    tokens: int
    windows: int
    max_length: int
    tokens_per_second: float


def perplexity(
    model: Any,
    tokenizer: Any,
    text: str | Sequence[str],
    max_length: int = WINDOW_LENGTH,
    num_windows: int | None = None,
    report: Reporter = null_reporter,
) -> PerplexityResult:
    """Perplexity over one text, or over several (each gives windows in proportion to its length).

    Args:
        model: a causal language model; its train/eval mode is restored.
        tokenizer: what the model was trained with.
        text: the text, or a list of texts.
        max_length: tokens per window.
        num_windows: how many windows at most, spread evenly; never more than fit without overlap.
        report: progress, stage "evaluate", one step a window.

    Raises:
        InvalidOptionError: a size below its minimum, or a text of less than two tokens.
        TokenizerError: no tokenizer.
    """
    return score_windows(model, text_windows(tokenizer, text, max_length, num_windows), report)


def text_windows(
    tokenizer: Any, text: str | Sequence[str], max_length: int = WINDOW_LENGTH, num_windows: int | None = None
) -> list[list[int]]:
    """The windows of token ids that :func:`perplexity` scores."""
    if tokenizer is None:
        raise TokenizerError("Perplexity over a text needs a tokenizer, and the model has none.")
    if max_length < 2 or (num_windows is not None and num_windows < 1):
        raise InvalidOptionError("max_length must be at least 2 and num_windows at least 1")
    texts = [text] if isinstance(text, str) else text
    documents = [ids for ids in (encode(tokenizer, part) for part in texts) if len(ids) >= 2]
    if not documents:
        raise InvalidOptionError("the evaluation text is shorter than two tokens")
    if len(documents) == 1:
        return windows_from_ids(documents[0], max_length, num_windows)
    return share_windows(documents, max_length, num_windows)


def score_windows(
    model: Any, windows: Sequence[Sequence[int]], report: Reporter = null_reporter
) -> PerplexityResult:
    """Perplexity over windows of token ids, each scored alone.

    Raises:
        UnsupportedModelError: the model predicts no next token (a masked or an encoder-decoder model).
        InvalidOptionError, TokenizerError: see ``check_tokens``.
    """
    check_predicts_next_token(model)
    device = next(model.parameters()).device
    loss, tokens = 0.0, 0
    speeds: list[float] = []
    with eval_mode(model), torch.no_grad(), fast_products(model):
        for number, window in enumerate(windows, 1):
            ids = torch.tensor(window)[None]
            check_tokens(model, ids)
            start, ids = time.perf_counter(), ids.to(device)
            loss += float(token_losses(model(input_ids=ids, use_cache=False).logits, ids).double().sum())
            # the sum above was waited for: an accelerator's time is all in
            speeds.append(ids.shape[1] / (time.perf_counter() - start))
            tokens += ids.shape[1] - 1
            report("evaluate", number, len(windows), f"window {number} of {len(windows)}")
    mean = loss / tokens
    value = perplexity_of(mean)
    longest, speed = max(map(len, windows)), statistics.median(speeds)
    return PerplexityResult(value, mean, tokens, len(windows), longest, speed)
