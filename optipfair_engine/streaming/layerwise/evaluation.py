"""Perplexity of a checkpoint on disk: its windows go through one layer after the other, and then the head.

The protocol is that of ``evaluation.perplexity``, so the figures are those of a model in memory, to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from optipfair_engine.calibration.next_token import check_predicts_next_token, token_losses
from optipfair_engine.calibration.runner import check_tokens
from optipfair_engine.computing.products import fast_products
from optipfair_engine.progress import Reporter, null_reporter
from optipfair_engine.streaming.layerwise.calls import layers_replaced, step

if TYPE_CHECKING:
    from optipfair_engine.architectures import ModelView
    from optipfair_engine.calibration.text import Batch


@dataclass
class Evaluation:
    """Windows of token ids to score, each alone; ``mean_loss`` (nats a token) is filled in once they are."""

    windows: Sequence[Sequence[int]]
    mean_loss: float | None = None
    batches: list[Batch] = field(init=False)

    def __post_init__(self) -> None:
        """Make the batches, of one window each."""
        ids = [torch.tensor(window)[None] for window in self.windows]
        self.batches = [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in ids]


def score_layerwise(
    view: ModelView, windows: Sequence[Sequence[int]], report: Reporter = null_reporter
) -> float:
    """The mean loss of windows of token ids, in nats a predicted token, in memory for about one layer.

    Args:
        view: of a checkpoint, from ``layerwise.open_checkpoint``.
        windows: what ``perplexity.text_windows`` gives.
        report: progress, stage "evaluate", one step a layer.

    Raises:
        UnsupportedModelError: it predicts no next token, or can't be run layer by layer.
        InvalidOptionError, TokenizerError: see ``check_tokens``.
    """
    check_predicts_next_token(view.model)
    batches, hidden, as_tuple = Evaluation(windows).batches, list[Tensor](), False
    for batch in batches:
        check_tokens(view.model, batch["input_ids"])
    with torch.no_grad(), fast_products(view.model):
        for index in range(view.num_layers):
            for number, batch in enumerate(batches):
                as_tuple = step(view, index, batch, hidden, number)
            report("evaluate", index + 1, view.num_layers, f"layer {index}")
        loss, tokens = loss_behind_layers(view, batches, hidden, as_tuple)
        return loss / tokens


def loss_behind_layers(
    view: ModelView, batches: Sequence[Batch], hidden: Sequence[Tensor], as_tuple: bool
) -> tuple[float, int]:
    """Loss and number of predicted tokens, from the states ``[1, tokens, hidden]`` behind the last layer.

    The model's own ``forward`` does what comes behind the layers; ``as_tuple``: its layers return tuples.
    """
    loss, tokens = 0.0, 0
    for batch, states in zip(batches, hidden, strict=True):
        stand_ins = [_Behind(layer, states, as_tuple) for layer in view.layers]
        with layers_replaced(view, stand_ins):
            logits = view.model(**batch, use_cache=False).logits
        loss += float(token_losses(logits, batch["input_ids"]).double().sum())
        tokens += batch["input_ids"].shape[1] - 1
    return loss, tokens


class _Behind(nn.Module):
    """Stands for a layer: whatever it is given, it returns the states behind the last one."""

    def __init__(self, layer: nn.Module, states: Tensor, as_tuple: bool) -> None:
        super().__init__()
        self.__dict__["_layer"] = layer
        self._output: Any = (states,) if as_tuple else states

    def __getattr__(self, name: str) -> Any:
        # some models read attributes of a layer, such as its attention type, before they call it
        return getattr(self.__dict__["_layer"], name)

    def forward(self, *_args: Any, **_kwargs: Any) -> Any:
        """The states, in the form in which the layers return theirs."""
        return self._output
