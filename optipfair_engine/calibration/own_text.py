"""Calibration on text that the model writes itself, for users who have none, or too narrow a one.

A model's own samples at temperature 1 are drawn from what it has learnt, and serve calibration about as well
as text from its training data (Ji et al. 2024, arXiv:2406.15524). What is drawn are token ids: nothing is
decoded and tokenised again. They come in many short pieces at once, since a cache of keys and values grows by
copying: the copies of few long samples take longer than the model itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from optipfair_engine.calibration.next_token import check_predicts_next_token
from optipfair_engine.calibration.runner import check_tokens, eval_mode, position_limit
from optipfair_engine.calibration.text import (
    Batch,
    CalibrationSet,
    calibration_from_windows,
    encode,
)
from optipfair_engine.computing.products import fast_products
from optipfair_engine.errors import CalibrationError, UnsupportedModelError
from optipfair_engine.progress import Reporter, null_reporter

if TYPE_CHECKING:
    from optipfair_engine.options.prune import PruneOptions

#: What results call text that the model wrote.
OWN_TEXT: Final = "text that the model wrote itself"

#: Tokens in a piece, and pieces that are written at once.
PIECE_LENGTH: Final = 128
PIECES_AT_ONCE: Final = 64

#: How pieces begin, beside the model's own beginning of text, from which a chat model writes only chats.
OPENINGS: Final = (
    "The history of the region begins",
    "In a paper published last year, researchers",
    "The government announced on Monday that",
    "Once upon a time, in a small village,",
    "def __init__(self",
    "import os\nimport sys\n\n\nclass ",
    "#include <stdio.h>\n\nint main",
    "KING.\nMy lord, I",
    "Thou art",
    "Q: How can I",
    "To prepare the dough, first",
    "Let x be a real number. Then",
    "Dear Sir or Madam,\n\n",
    '"I don\'t think so," she said.',
    "1. Open the settings and",
    "He was born in",
)


def calibration_for(
    model: Any,
    tokenizer: Any,
    options: PruneOptions,
    given: CalibrationSet | None,
    *,
    report: Reporter = null_reporter,
) -> CalibrationSet | None:
    """The calibration that options ask for: what is given, the model's own text, or both.

    Args:
        model: which writes.
        tokenizer: of the openings; without one every piece begins as the model's texts do.
        options: ``calibration``, ``mix_self``, ``seed`` and how text is cut.
        given: the user's text, if there is any.
        report: progress, stage "generate".

    Raises:
        UnsupportedModelError: the model writes no text.
        CalibrationError: its predictions are NaN, or it has no token to begin with.
        TokenizerError: the tokenizer is of another model.
    """
    if given is not None and options.mix_self is not None:
        share = options.mix_self
        count = max(1, round(given.num_samples * share / (1 - share)))
        own = write_calibration(model, tokenizer, options, count, report=report)
        return mixed(given, own)
    if options.calibration is not None:
        return write_calibration(model, tokenizer, options, options.num_samples, report=report)
    return given


def write_calibration(
    model: Any, tokenizer: Any, options: PruneOptions, count: int, *, report: Reporter = null_reporter
) -> CalibrationSet:
    """``count`` samples of ``options.max_length`` tokens that the model writes.

    See :func:`calibration_for` for arguments and errors.
    """
    check_predicts_next_token(model)
    length = options.max_length
    piece = min(length, PIECE_LENGTH, position_limit(model) or length)
    each = -(-length // piece)
    starts = _starts(model, tokenizer, piece)
    generator = torch.Generator().manual_seed(options.seed)
    written: list[list[int]] = []
    total = count * each
    with eval_mode(model), torch.no_grad(), fast_products(model):
        for first in range(0, total, PIECES_AT_ONCE):
            numbers = range(first, min(first + PIECES_AT_ONCE, total))
            forced = torch.full((len(numbers), piece), -1)
            for row, number in enumerate(numbers):
                start = starts[number % len(starts)]
                forced[row, : len(start)] = torch.tensor(start)
            written += _write(model, forced, generator).tolist()
            report("generate", len(written), total, f"{len(written) * piece} tokens written")
    windows = [[*chain.from_iterable(written[i * each : (i + 1) * each])][:length] for i in range(count)]
    found = calibration_from_windows(windows, batch_size=options.batch_size, source=OWN_TEXT)
    return replace(found, own_samples=len(windows))


def mixed(given: CalibrationSet, own: CalibrationSet) -> CalibrationSet:
    """Both, batches of one spread among those of the other, so that samples of either kind are held out."""
    return replace(
        given,
        batches=_interleaved(given.batches, own.batches),
        tokens=given.tokens + own.tokens,
        source=f"{given.source}, and {own.source}",
        num_samples=given.num_samples + own.num_samples,
        num_texts=given.num_texts + 1,  # it is no longer one text alone
        max_length=max(given.max_length, own.max_length),
        own_samples=own.num_samples,
    )


def _interleaved(many: Sequence[Batch], few: Sequence[Batch]) -> list[Batch]:
    """Each batch at its place, if both sequences are spread over the same length."""
    places = [
        ((i + 0.5) / len(some), kind, i) for kind, some in enumerate((many, few)) for i in range(len(some))
    ]
    return [(many, few)[kind][i] for _, kind, i in sorted(places)]


def _starts(model: Any, tokenizer: Any, length: int) -> list[list[int]]:
    """Token ids that pieces begin with; each leaves room for a token to be drawn."""
    config, known = model.config.get_text_config(), range(len(model.get_input_embeddings().weight))
    before = [token for token in (config.bos_token_id, config.eos_token_id) if token in known][:1]
    openings = [] if tokenizer is None else [encode(tokenizer, text) for text in OPENINGS]
    starts = [before, *(before + ids for ids in openings)]
    usable = [start[: max(1, length - 1)] for start in starts if start]
    if not usable:
        raise CalibrationError(
            "the model's config names no token that a text begins with, and there is no tokenizer: "
            "give calibration text"
        )
    for start in usable:
        check_tokens(model, torch.tensor([start]))
    return usable


def _write(model: Any, forced: Tensor, generator: torch.Generator) -> Tensor:
    """Rows of token ids ``[pieces, tokens]``, drawn at temperature 1 where ``forced`` is −1."""
    ids, cache = forced.clone(), None
    device = next(model.parameters()).device
    for position in range(forced.shape[1] - 1):
        output = model(
            input_ids=ids[:, position : position + 1].to(device), past_key_values=cache, use_cache=True
        )
        cache = getattr(output, "past_key_values", None)
        if cache is None:
            raise UnsupportedModelError(
                f"{model.config.model_type}: it keeps no keys and values, so it can't write calibration "
                "text: give some"
            )
        following = forced[:, position + 1]
        ids[:, position + 1] = torch.where(following < 0, _drawn(output.logits[:, -1], generator), following)
    return ids


def _drawn(logits: Tensor, generator: torch.Generator) -> Tensor:
    """One token for each row of logits ``[pieces, vocabulary]``; drawn on the CPU, the same on any device."""
    chances = logits.float().softmax(-1).cpu()
    if not bool(chances.isfinite().all()):
        raise CalibrationError("the model's predictions are not finite, so it can't write calibration text")
    return torch.multinomial(chances, 1, generator=generator).squeeze(1)
