"""Two prompts of a pair in one batch, and what each would be with the other's activations at one place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from optipfair_engine.architectures import ModelView
from optipfair_engine.bias.activations.batching import (
    PaddedBatch,
    asked_only,
    number_type_hint,
    pad,
    padding_id,
)
from optipfair_engine.bias.activations.components import Site
from optipfair_engine.bias.activations.stream import EncodedPair
from optipfair_engine.bias.cause.places import changed
from optipfair_engine.errors import NonFiniteResultError


@dataclass(frozen=True)
class Exchange:
    """Which positions of a batch take each other's values; rows 2p and 2p + 1 are pair p's prompts.

    ``first``/``second``: flattened positions that are exchanged one by one. ``pooled``: spans of different
    lengths, each of which is moved so that its mean becomes the other's.
    """

    first: Tensor
    second: Tensor
    pooled: tuple[tuple[slice, slice], ...]

    @classmethod
    def of(cls, pairs: Sequence[EncodedPair], width: int) -> Exchange:
        """All positions from the first difference on that the alignment compares."""
        first: list[int] = []
        second: list[int] = []
        pooled = []
        for number, pair in enumerate(pairs):
            start = pair.alignment.first_difference
            base1, base2 = 2 * number * width, (2 * number + 1) * width
            for unit in pair.alignment.compared[start:] if start is not None else ():
                if unit.kind == "pooled":
                    span1 = slice(base1 + unit.start1, base1 + unit.stop1)
                    pooled.append((span1, slice(base2 + unit.start2, base2 + unit.stop2)))
                else:
                    first.append(base1 + unit.start1)
                    second.append(base2 + unit.start2)
        return cls(
            torch.tensor(first, dtype=torch.int64), torch.tensor(second, dtype=torch.int64), tuple(pooled)
        )

    def swapped(self, values: Tensor, part: slice = slice(None)) -> Tensor:
        """``values [rows, tokens, features]`` with the features ``part`` of both prompts exchanged."""
        result = values.clone()
        flat, own = result.view(-1, values.shape[-1])[:, part], values.reshape(-1, values.shape[-1])[:, part]
        first, second = self.first.to(values.device), self.second.to(values.device)
        flat[first], flat[second] = own[second], own[first]
        for span1, span2 in self.pooled:
            shift = own[span2].mean(dim=0) - own[span1].mean(dim=0)
            flat[span1], flat[span2] = own[span1] + shift, own[span2] - shift
        return result

    def change(self, values: Tensor) -> Tensor:
        """What the exchange adds to ``values [rows, tokens, features]``, in float32 or better."""
        wide = values if values.dtype == torch.float64 else values.float()
        return self.swapped(wide) - wide


class PairBatch:
    """Both prompts of some pairs as rows, and the model's next-token logits behind each."""

    def __init__(self, view: ModelView, pairs: Sequence[EncodedPair]) -> None:
        self._model, self._pairs = view.model, pairs
        prompts = [prompt for pair in pairs for prompt in (pair.first, pair.second)]
        batch = pad([prompt.ids for prompt in prompts], padding_id(view.model))
        device = next(view.layers.parameters()).device
        self._batch = PaddedBatch(batch.input_ids.to(device), batch.attention_mask.to(device))
        self._last = torch.tensor([len(prompt.ids) - 1 for prompt in prompts], device=device)
        self.exchange = Exchange.of(pairs, batch.width)

    def logits(self) -> Tensor:
        """Next-token logits ``[rows, vocabulary]``, in float32 or better.

        Their mean over the vocabulary is taken off: it changes no probability.

        Raises:
            NonFiniteResultError: they overflow; the text names the pair.
        """
        with asked_only(self._model.get_output_embeddings(), self._last):
            run: Any = self._model
            found: Tensor = run(
                input_ids=self._batch.input_ids, attention_mask=self._batch.attention_mask, use_cache=False
            ).logits
        rows = torch.arange(len(self._last), device=found.device)
        asked = found[:, 0] if found.shape[1] == 1 else found[rows, self._last.to(found.device)]
        wide = asked if asked.dtype == torch.float64 else asked.float()
        self._refuse_non_finite(wide)
        return wide - wide.mean(dim=1, keepdim=True)

    def swapped_logits(self, site: Site, part: slice) -> Tensor:
        """The same where each prompt has the other's values of some features at a site."""
        with changed(site, lambda values: self.exchange.swapped(values, part)):
            return self.logits()

    def _refuse_non_finite(self, logits: Tensor) -> None:
        broken = (~logits.isfinite().all(dim=1)).nonzero().flatten().tolist()
        if broken:
            pair = self._pairs[broken[0] // 2]
            raise NonFiniteResultError(
                f"the next-token logits are not finite for pair {pair.index} ({pair.first.text[:60]!r}): "
                f"{number_type_hint(self._model)}"
            )


def apart(logits: Tensor) -> Tensor:
    """Second − first prompt's logits ``[pairs, vocabulary]`` of a batch's rows."""
    return logits[1::2] - logits[0::2]


def total_variation(logits: Tensor) -> Tensor:
    """Distance of the two next-token distributions of each pair ``[pairs]``: 0 equal, 1 disjoint."""
    probabilities = logits.softmax(dim=1)
    return (probabilities[1::2] - probabilities[0::2]).abs().sum(dim=1) / 2
