"""Continuations of prompts, drawn from the model's own distribution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from optipfair_engine.architectures import ModelView
from optipfair_engine.bias.activations.batching import Prompt, check_prompts, inference, padding_id
from optipfair_engine.bias.activations.stream import EncodedPair
from optipfair_engine.calibration.runner import position_limit
from optipfair_engine.errors import InvalidOptionError, UnsupportedModelError
from optipfair_engine.options.bias import Generation
from optipfair_engine.progress import Reporter


@dataclass(frozen=True)
class Continuation:
    """What was said behind a prompt; ``ids`` end with the end token if it ``ended`` by itself."""

    ids: tuple[int, ...]
    ended: bool
    text: str

    @property
    def words(self) -> tuple[int, ...]:
        """The tokens without the end token."""
        return self.ids[:-1] if self.ended else self.ids


def continue_pairs(
    view: ModelView, tokenizer: Any, pairs: Sequence[EncodedPair], asked: Generation, report: Reporter
) -> list[tuple[list[Continuation], list[Continuation]]]:
    """Each pair's continuations of both prompts; progress: stage "generate".

    Drawn at temperature 1 from all tokens, whatever the model's generation config asks for, since what is
    compared are distributions. Every prompt has random numbers of its own, from the seed and its number; the
    global generators are left as they were.

    Raises:
        UnsupportedModelError: the model can't generate.
        InvalidOptionError: a prompt and its continuation are longer than the model's positions.
    """
    _check(view, pairs, asked)
    found = []
    for number, pair in enumerate(pairs):
        sides = []
        for side, prompt in enumerate((pair.first, pair.second)):
            seed = (asked.seed + 2 * pair.index + side) % 2**32
            sides.append(_continue(view, tokenizer, prompt, asked, seed))
        found.append((sides[0], sides[1]))
        report("generate", number + 1, len(pairs), f"pair {number + 1} of {len(pairs)}")
    return found


def _check(view: ModelView, pairs: Sequence[EncodedPair], asked: Generation) -> None:
    if not view.model.can_generate():
        raise UnsupportedModelError(f"{type(view.model).__name__} can't generate text")
    check_prompts(view, (prompt for pair in pairs for prompt in (pair.first, pair.second)))
    limit = position_limit(view.model)
    longest = max(pair.length for pair in pairs)
    if limit is not None and longest + asked.max_new_tokens > limit:
        raise InvalidOptionError(
            f"generation: a prompt of {longest} tokens and {asked.max_new_tokens} new ones are more than the "
            f"model's {limit} positions: give max_new_tokens of at most {max(0, limit - longest)}"
        )


def _continue(
    view: ModelView, tokenizer: Any, prompt: Prompt, asked: Generation, seed: int
) -> list[Continuation]:
    device = next(view.layers.parameters()).device
    ids = torch.tensor([prompt.ids], device=device)
    devices = [device] if device.type == "cuda" else []
    generate: Any = view.model.generate
    with torch.random.fork_rng(devices), inference(view.model):
        torch.manual_seed(seed)
        output: Tensor = generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=_config(view, asked)
        )
    ends = _end_tokens(view)
    return [_read(row, ends, tokenizer) for row in output[:, len(prompt.ids) :].tolist()]


def _config(view: ModelView, asked: Generation) -> GenerationConfig:
    """Plain sampling; what isn't said here is the model's own, so every change of its distribution is."""
    ends = _end_tokens(view)
    return GenerationConfig(
        max_new_tokens=asked.max_new_tokens,
        num_return_sequences=asked.samples,
        do_sample=True,
        num_beams=1,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        min_p=0.0,
        typical_p=1.0,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        min_length=0,
        pad_token_id=padding_id(view.model),
        eos_token_id=list(ends) or None,
    )


def _end_tokens(view: ModelView) -> tuple[int, ...]:
    config = getattr(view.model, "generation_config", None)
    value = getattr(config, "eos_token_id", None)
    if value is None:
        value = getattr(view.config, "eos_token_id", None)
    return tuple(value) if isinstance(value, list | tuple) else (() if value is None else (int(value),))


def _read(row: Sequence[int], ends: Sequence[int], tokenizer: Any) -> Continuation:
    """A row up to its end token: what stands behind is padding."""
    place = next((number for number, token in enumerate(row) if token in ends), None)
    ids = tuple(row if place is None else row[: place + 1])
    words = ids if place is None else ids[:-1]
    return Continuation(ids, place is not None, tokenizer.decode(list(words), skip_special_tokens=True))
