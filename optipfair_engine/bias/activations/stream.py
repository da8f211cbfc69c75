"""One forward pass a batch for all pairs, both sides, and all components; what is kept of it does not grow.

Every distinct prompt is one row, so equal prompts differ by exactly nothing. Differences are formed inside
the forward hooks and handed to consumers; no activation outlives its batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from optipfair_engine.architectures import ModelView
from optipfair_engine.bias.activations.batching import (
    TOKEN_BUDGET,
    Prompt,
    check_prompts,
    encode,
    inference,
    number_type_hint,
    pad,
    padding_id,
    run_body,
    within_budget,
)
from optipfair_engine.bias.activations.components import Site, hooked
from optipfair_engine.bias.activations.pairs import at_least_float32
from optipfair_engine.bias.defaults import PromptPair
from optipfair_engine.bias.prompts.alignment import Alignment, align, infer_template
from optipfair_engine.errors import InvalidOptionError, NonFiniteResultError
from optipfair_engine.progress import Reporter, null_reporter


@dataclass(frozen=True)
class EncodedPair:
    """A tokenised pair; ``template`` names its cluster (pairs from one template are not independent)."""

    index: int
    first: Prompt
    second: Prompt
    alignment: Alignment
    template: str

    @property
    def length(self) -> int:
        """Tokens of the longer side."""
        return max(len(self.first.ids), len(self.second.ids))


@dataclass(frozen=True)
class BatchUnits:
    """Where the compared units of a batch are in its flattened ``[rows·tokens, features]`` activations.

    ``first``/``second``: one position a unit; ``pooled``: (unit, positions of side 1, positions of side 2)
    for those whose spans are averaged; ``offsets[p]:offsets[p+1]`` are the units of pair p, ``starts[p]`` its
    first one at or behind the first difference (its end, if there is none).
    """

    pairs: tuple[EncodedPair, ...]
    rows: int
    first: Tensor
    second: Tensor
    pooled: tuple[tuple[int, slice, slice], ...]
    offsets: np.ndarray[Any, np.dtype[np.int64]]
    starts: np.ndarray[Any, np.dtype[np.int64]]

    def sides(self, activations: Tensor) -> tuple[Tensor, Tensor]:
        """Both sides' rows ``[units, features]``, at least float32, from ``[rows, tokens, features]``."""
        flat = activations.reshape(-1, activations.shape[-1])
        first = at_least_float32(flat[self.first.to(flat.device)])
        second = at_least_float32(flat[self.second.to(flat.device)])
        for unit, span1, span2 in self.pooled:
            first[unit] = at_least_float32(flat[span1]).mean(dim=0)
            second[unit] = at_least_float32(flat[span2]).mean(dim=0)
        return first, second


class Consumer(Protocol):
    """What looks at a batch: ``begin`` once, ``take`` for every site, ``end`` once."""

    def begin(self, units: BatchUnits) -> None:
        """A batch starts."""

    def take(self, key: str, first: Tensor, second: Tensor, alias: str | None) -> None:
        """Both sides ``[units, features]`` of a site; ``alias``: the key that just had the same tensor."""

    def end(self) -> None:
        """The batch's forward pass is over."""


def encode_pairs(
    tokenizer: Any,
    pairs: Sequence[PromptPair],
    templates: Sequence[str] | None = None,
    *,
    causal: bool = True,
) -> list[EncodedPair]:
    """Tokenise and align pairs.

    Args:
        tokenizer: the model's tokenizer.
        pairs: two texts each.
        templates: names of the clusters, one a pair; by default the words that both prompts share.
        causal: whether the model's positions see no later ones (``ModelView.is_causal``).

    Raises:
        InvalidOptionError: no pairs, an entry that is not a pair, or another number of templates.
    """
    if not pairs:
        raise InvalidOptionError("There are no prompt pairs")
    if templates is not None and len(templates) != len(pairs):
        raise InvalidOptionError(f"{len(templates)} templates for {len(pairs)} pairs")
    encoded = []
    for index, pair in enumerate(pairs):
        if isinstance(pair, str) or len(pair) != 2:
            raise InvalidOptionError(f"Prompt pair {index} has not two prompts: {pair!r}")
        first, second = encode(tokenizer, pair[0]), encode(tokenizer, pair[1])
        template = templates[index] if templates is not None else infer_template(*pair)
        alignment = align(first.ids, second.ids, letters=(first.letters, second.letters), causal=causal)
        encoded.append(EncodedPair(index, first, second, alignment, template))
    return encoded


def run_pairs(
    view: ModelView,
    pairs: Sequence[EncodedPair],
    sites: Sequence[Site],
    consumers: Sequence[Consumer],
    *,
    token_budget: int = TOKEN_BUDGET,
    report: Reporter = null_reporter,
) -> int:
    """Feed all pairs to the consumers, a batch at a time, in order; returns the number of forward passes.

    ``token_budget`` bounds the padded tokens of a batch. Progress: stage "bias", one step a pair.

    Raises:
        InvalidOptionError: a prompt longer than the model's positions.
        TokenizerError: an id that the model lacks.
        NonFiniteResultError: activations overflow; the text names the layer and the pair.
    """
    check_prompts(view, (prompt for pair in pairs for prompt in (pair.first, pair.second)))
    relay = _Relay(consumers, number_type_hint(view.model))
    forwards = 0
    with inference(view.model), hooked(sites, relay.give):
        for run in within_budget([pair.length for pair in pairs], token_budget, rows_each=2):
            _run_batch(view, pairs[run.start : run.stop], relay)
            forwards += 1
            report("bias", run.stop, len(pairs), f"pair {run.stop} of {len(pairs)}")
    return forwards


def _run_batch(view: ModelView, pairs: Sequence[EncodedPair], relay: _Relay) -> None:
    rows: dict[tuple[int, ...], int] = {}
    for pair in pairs:
        for prompt in (pair.first, pair.second):
            rows.setdefault(prompt.ids, len(rows))
    padded = pad(list(rows), padding_id(view.model))
    relay.begin(_batch_units(pairs, rows, padded.width))
    run_body(view, padded)
    relay.end()


def _batch_units(pairs: Sequence[EncodedPair], rows: dict[tuple[int, ...], int], width: int) -> BatchUnits:
    first: list[int] = []
    second: list[int] = []
    pooled: list[tuple[int, slice, slice]] = []
    offsets, starts = [0], []
    for pair in pairs:
        base1, base2 = rows[pair.first.ids] * width, rows[pair.second.ids] * width
        for unit in pair.alignment.compared:
            if unit.kind == "pooled":
                span1 = slice(base1 + unit.start1, base1 + unit.stop1)
                pooled.append((len(first), span1, slice(base2 + unit.start2, base2 + unit.stop2)))
            first.append(base1 + unit.start1)
            second.append(base2 + unit.start2)
        start = pair.alignment.first_difference
        starts.append(offsets[-1] + start if start is not None else len(first))
        offsets.append(len(first))
    return BatchUnits(
        tuple(pairs),
        len(rows),
        torch.tensor(first, dtype=torch.int64),
        torch.tensor(second, dtype=torch.int64),
        tuple(pooled),
        np.array(offsets, dtype=np.int64),
        np.array(starts, dtype=np.int64),
    )


class _Relay:
    """Turns what hooks see into compared rows, once a tensor, and passes them on."""

    def __init__(self, consumers: Sequence[Consumer], hint: str) -> None:
        self._consumers, self._hint = consumers, hint
        self._units: BatchUnits | None = None
        self._last: tuple[str, Tensor, int, tuple[Tensor, Tensor]] | None = None
        self._sums: list[tuple[str, Tensor]] = []

    def begin(self, units: BatchUnits) -> None:
        self._units, self._last, self._sums = units, None, []
        for consumer in self._consumers:
            consumer.begin(units)

    def end(self) -> None:
        self._last = None
        self._refuse_non_finite()
        for consumer in self._consumers:
            consumer.end()

    def give(self, key: str, activations: Tensor) -> None:
        if self._units is None:
            return
        alias, sides = None, None
        if self._last is not None and _same(self._last[1], self._last[2], activations):
            alias, sides = self._last[0], self._last[3]
        if sides is None:
            sides = self._units.sides(activations)
            self._sums.append((key, sides[0].sum(dim=1) + sides[1].sum(dim=1)))
        if alias is None and key.startswith("down_proj_layer_"):
            self._last = (key, activations, activations._version, sides)
        for consumer in self._consumers:
            consumer.take(key, *sides, alias)

    def _refuse_non_finite(self) -> None:
        """An overflow would spoil every mean; it is said before anything is made of the batch.

        Sums ``[units]`` are not finite if anything in them isn't. They are read here, and not site by site,
        so that an accelerator is waited for but once a batch.
        """
        if self._units is None or not self._sums:
            return
        device = self._sums[0][1].device
        finite = torch.stack([sums.to(device) for _, sums in self._sums]).isfinite()
        if bool(finite.all()):
            return
        site, unit = (~finite).nonzero()[0].tolist()
        pair = self._units.pairs[int(np.searchsorted(self._units.offsets, unit, side="right")) - 1]
        raise NonFiniteResultError(
            f"{self._sums[site][0]} is not finite for pair {pair.index} ({pair.first.text[:60]!r}): "
            f"{self._hint}"
        )


def _same(kept: Tensor, version: int, other: Tensor) -> bool:
    """Whether ``other`` is the very tensor that was kept, unchanged (the version counts in-place writes)."""
    return kept.data_ptr() == other.data_ptr() and kept.numel() == other.numel() and other._version == version


def pairs_in_template_order(pairs: Sequence[EncodedPair]) -> Iterator[EncodedPair]:
    """The pairs with each template's together, for consumers that finish one template at a time."""
    yield from sorted(pairs, key=lambda pair: (pair.template, pair.length))
