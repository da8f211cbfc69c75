"""Prompts to padded batches under a token budget, and the forward pass of a model's body over them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from optipfair_engine.architectures import ModelView
from optipfair_engine.calibration.runner import eval_mode, position_limit
from optipfair_engine.calibration.text import pad as pad_samples
from optipfair_engine.computing.products import fast_products
from optipfair_engine.errors import InvalidOptionError, TokenizerError, UnsupportedModelError

#: Padded tokens of one forward pass: enough to fill two cores, few enough to stay in their cache; it bounds
#: memory.
TOKEN_BUDGET = 512
#: What a decoder writes for bytes that are no whole character.
_BROKEN = "\ufffd"
#: Neighbours that may hold the rest of a character's bytes.
_MOST_NEIGHBOURS = 6


@dataclass(frozen=True)
class Prompt:
    """A tokenised prompt; ``pieces`` are its tokens' texts, each alone, and ``decode`` reads several."""

    text: str
    ids: tuple[int, ...]
    pieces: tuple[str, ...]
    decode: Callable[[list[int]], str] | None = field(default=None, compare=False, repr=False)

    @property
    def tokens(self) -> tuple[str, ...]:
        """The tokens, readable, one a position."""
        return tuple(self.words(i, i + 1) for i in range(len(self.ids)))

    def words(self, start: int, stop: int) -> str:
        """The text of the positions from ``start`` to before ``stop``, read together.

        Only together do tokens tell where a word ends ("play", "##ing") or which letter their bytes are; a
        token with some bytes of a letter is shown as the letter and its part, as "語 (2/3)".
        """
        if start == stop:
            return ""
        numbers = " ".join(map(str, self.ids[start:stop]))
        if self.decode is None or stop - start == 1:
            text = " ".join(piece.strip() for piece in self.pieces[start:stop])
        else:
            text = self.decode(list(self.ids[start:stop]))
        if _BROKEN in text and _BROKEN not in self.text:
            text = self._whole(start, stop) or text
        return text.strip() or _blank("".join(self.pieces[start:stop])) or f"⟨{numbers}⟩"

    @property
    def letters(self) -> tuple[int, ...]:
        """How many tokens each whole letter, or piece of whole letters, is of; their sum is all tokens."""
        sizes: list[int] = []
        start = 0
        while start < len(self.ids):
            size = self._tokens_of_letter(start)
            sizes.append(size)
            start += size
        return tuple(sizes)

    def _tokens_of_letter(self, start: int) -> int:
        if self.decode is None or _BROKEN not in self.pieces[start] or _BROKEN in self.text:
            return 1
        most = min(_MOST_NEIGHBOURS + 1, len(self.ids) - start)
        for size in range(2, most + 1):
            if _BROKEN not in self.decode(list(self.ids[start : start + size])):
                return size
        return 1

    def _whole(self, start: int, stop: int) -> str | None:
        """The text of the fewest positions around these that end at whole characters."""
        if self.decode is None:
            return None
        for more in range(1, _MOST_NEIGHBOURS + 1):
            for left in range(more + 1):
                first, last = start - left, stop + more - left
                if first < 0 or last > len(self.ids):
                    continue
                text = self.decode(list(self.ids[first:last]))
                if _BROKEN not in text:
                    part = f" ({start - first + 1}/{last - first})" if stop - start == 1 else ""
                    return text.strip() + part
        return None


def _blank(text: str) -> str:
    """Spaces and ends of lines as signs that can be seen."""
    return text.replace("\n", "↵").replace("\t", "⇥").replace(" ", "␣") if text.isspace() else ""


def encode(tokenizer: Any, text: str) -> Prompt:
    """Tokenise one prompt as ``tokenizer(text)`` does (with its special tokens).

    Raises:
        InvalidOptionError: not a text, or one without any token.
    """
    if not isinstance(text, str):
        raise InvalidOptionError(f"A prompt must be a string, got {type(text).__name__}")
    encoded = tokenizer(text, return_tensors="pt")["input_ids"]
    ids = tuple(int(i) for i in torch.as_tensor(encoded).flatten().tolist())
    if not ids:
        raise InvalidOptionError(f"The prompt {text!r} has no tokens")
    decode = getattr(tokenizer, "decode", None)
    pieces = tuple(str(decode([i])) if decode is not None else str(i) for i in ids)
    return Prompt(text, ids, pieces, decode)


def check_prompts(view: ModelView, prompts: Iterable[Prompt]) -> None:
    """Refuse ids that the embedding lacks, and prompts longer than the model's positions.

    Positions end where the model has a table of them (``position_limit``), not with rotary ones.

    Raises:
        TokenizerError: the tokenizer isn't this model's.
        InvalidOptionError: a prompt is too long.
    """
    vocabulary = int(view.model.get_input_embeddings().weight.shape[0])  # type: ignore[index]
    longest = position_limit(view.model)
    for prompt in prompts:
        if max(prompt.ids) >= vocabulary:
            raise TokenizerError(
                f"The tokenizer gave the id {max(prompt.ids)}, the model has {vocabulary} tokens: "
                "they don't belong together"
            )
        if longest is not None and len(prompt.ids) > longest:
            raise InvalidOptionError(
                f"A prompt of {len(prompt.ids)} tokens is longer than the model's {longest} positions: "
                f"{prompt.text[:60]!r}…"
            )


def check_continues(view: ModelView) -> None:
    """Refuse a model that gives no next token for a text.

    Raises:
        UnsupportedModelError: it has no head, or sees the words that it is to predict.
    """
    name = type(view.model).__name__
    if view.model.get_output_embeddings() is None:
        raise UnsupportedModelError(f"{name} has no language-model head to score text with")
    if getattr(view.model.config, "is_encoder_decoder", False):
        raise UnsupportedModelError(f"{name} continues no text: it can't score sentences")
    if not view.is_causal:
        raise UnsupportedModelError(
            f"{name} sees the words that it is to predict (is_decoder is not set): "
            "load it as a model that fills masks, with AutoModelForMaskedLM"
        )


def number_type_hint(model: nn.Module) -> str:
    """What helps against numbers that are not finite, for the model's number type."""
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    if dtype == "float16":
        return "float16 overflows in this model; load it with dtype float32 or bfloat16"
    return f"the model computes in {dtype}; if dtype float32 doesn't help, its weights are broken"


@dataclass(frozen=True)
class PaddedBatch:
    """Right-padded ids and mask ``[rows, tokens]``: behind the text, padding shifts no position."""

    input_ids: Tensor
    attention_mask: Tensor

    @property
    def width(self) -> int:
        """Tokens of a row, with padding."""
        return int(self.input_ids.shape[1])


def pad(rows: Sequence[Sequence[int]], padding_id: int = 0) -> PaddedBatch:
    """Stack rows of ids of different lengths."""
    return PaddedBatch(**pad_samples(rows, padding_id))


def within_budget(lengths: Sequence[int], budget: int, rows_each: int = 1) -> Iterator[range]:
    """Consecutive runs whose rows, padded to the longest, hold at most ``budget`` tokens (or one item)."""
    start, width = 0, 0
    for number, length in enumerate(lengths):
        wider = max(width, length)
        if number > start and wider * rows_each * (number + 1 - start) > budget:
            yield range(start, number)
            start, wider = number, length
        width = wider
    if lengths:
        yield range(start, len(lengths))


def body_of(view: ModelView) -> nn.Module:
    """The innermost model around the layers that takes token ids: no language-model head, no other stack."""
    path = view.layers_path
    while path:
        path = path.rpartition(".")[0]
        module = view.model.get_submodule(path)
        if isinstance(module, PreTrainedModel):
            return module
    return view.model


def padding_id(model: PreTrainedModel) -> int:
    """An id to pad with: masked, so only its existence counts; the model's own where it has one."""
    value = getattr(model.config.get_text_config(), "pad_token_id", None)
    return int(value) if isinstance(value, int) and value >= 0 else 0


def run_body(view: ModelView, batch: PaddedBatch) -> Any:
    """One forward pass of the model's body, without a cache; call it inside ``inference``."""
    device = next(view.layers.parameters()).device
    return body_of(view)(
        input_ids=batch.input_ids.to(device), attention_mask=batch.attention_mask.to(device), use_cache=False
    )


@contextmanager
def inference(model: nn.Module) -> Iterator[None]:
    """Eval mode, no gradients and fast products inside the block; every module's own mode is restored."""
    with eval_mode(model), torch.no_grad(), fast_products(model):
        yield


@contextmanager
def asked_only(head: nn.Module | None, positions: Tensor) -> Iterator[None]:
    """Let the head's last product, over the vocabulary, see of ``[rows, tokens, …]`` one position a row."""

    def pick(_head: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        states = args[0]
        if states.dim() != 3 or len(states) != len(positions):
            return None
        places = positions.to(states.device)[:, None, None].expand(-1, 1, states.shape[2])
        return (states.gather(1, places), *args[1:])

    if head is None:
        yield
        return
    handle = head.register_forward_pre_hook(pick)
    try:
        yield
    finally:
        handle.remove()
