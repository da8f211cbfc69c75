"""How much each layer changes its input: one minus the cosine between a layer's input and its output.

Source: ShortGPT's "block influence" (arXiv:2403.03853, eq. 1), averaged over tokens rather than batches, so
that the result depends neither on padding nor on how the samples were batched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sized
from contextlib import ExitStack, nullcontext
from typing import TYPE_CHECKING, Any

import torch

from optipfair_engine.architectures import ModelView, locate
from optipfair_engine.calibration import CosineImportance, iter_batches
from optipfair_engine.calibration.runner import (
    TokenSelection,
    check_tokens,
    eval_mode,
    first_tensor,
    with_positions,
)
from optipfair_engine.computing.products import fast_products
from optipfair_engine.errors import CalibrationError
from optipfair_engine.notebooks import LayerScores
from optipfair_engine.progress import Reporter
from optipfair_engine.progress.bars import progress_bars

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel


def analyze_layer_importance(
    model: PreTrainedModel,
    dataloader: Iterable[Any],
    layers_path: str | None = None,
    show_progress: bool = True,
    *,
    report: Reporter | None = None,
) -> dict[int, float]:
    """``1 - mean cos(input, output)`` of each layer, over the unmasked tokens of all batches.

    Cosines are formed in float32 and added in float64, in eval mode; every module's own mode is restored.

    Args:
        model: a transformers model; the language-model head isn't run.
        dataloader: batches as dicts, tuples or tensors, also as ``DataLoader`` makes them of ``Dataset.map``.
        layers_path: where the layers are (``"transformer.h"``); ``None`` finds them.
        show_progress: show a progress bar.
        report: told about progress (stage "importance", one step a batch) instead of the bar.

    Returns:
        Layer → score, in the order of the layers. A score is NaN if a token's hidden state was all zero.

    Raises:
        CalibrationError: no batch, or no unmasked token.
        UnsupportedModelError: no layers found; the text names what was looked for.
    """
    view = locate(model, layers_path)
    scores = [CosineImportance() for _ in range(view.num_layers)]
    selection = TokenSelection()
    total = len(dataloader) if isinstance(dataloader, Sized) else 0
    with ExitStack() as stack:
        tell = stack.enter_context(progress_bars(show_progress) if report is None else nullcontext(report))
        for layer, score in zip(view.layers, scores, strict=True):
            stack.callback(layer.register_forward_hook(_hook(score, selection), with_kwargs=True).remove)
        stack.enter_context(eval_mode(model))
        stack.enter_context(torch.no_grad())
        stack.enter_context(fast_products(model))
        for number, batch in enumerate(iter_batches(dataloader), 1):
            _run(view, batch, selection)
            tell("importance", number, max(total, number), f"batch {number}")
    if scores[0].tokens == 0:
        raise CalibrationError("The calibration data has no unmasked token: layer importance is undefined.")
    return LayerScores({layer: score.result() for layer, score in enumerate(scores)})


def _hook(score: CosineImportance, selection: TokenSelection) -> Callable[..., None]:
    def feed(_layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        after = output[0] if isinstance(output, tuple) else output
        before = selection.take(first_tensor(args, kwargs), selection.fit)
        score.update(before, selection.take(after, selection.fit))

    return feed


def _run(view: ModelView, batch: dict[str, Tensor], selection: TokenSelection) -> None:
    """One forward pass of the part of the model that the layers belong to, without its head."""
    model = view.model
    device = next(model.get_input_embeddings().parameters()).device
    check_tokens(model, batch["input_ids"])
    inputs: dict[str, Any] = {key: value.to(device) for key, value in batch.items()}
    mask = "attention_mask"
    body = model.base_model
    if getattr(model.config, "is_encoder_decoder", False):
        if "encoder" in view.layers_path.split("."):
            body = model.get_encoder()
            inputs = {key: inputs[key] for key in ("input_ids", "attention_mask")}
        else:  # without inputs of its own the decoder reads what the encoder reads
            mask = "decoder_attention_mask"
            inputs.setdefault("decoder_input_ids", inputs["input_ids"])
            if inputs["decoder_input_ids"].shape == inputs["input_ids"].shape:
                inputs.setdefault(mask, inputs["attention_mask"])
            inputs.setdefault(mask, torch.ones_like(inputs["decoder_input_ids"]))
    if getattr(model.config, "is_decoder", True) or view.config.use_cache:
        inputs["use_cache"] = False
    selection.load(inputs[mask], 0, None)
    body(**with_positions(body, inputs))
