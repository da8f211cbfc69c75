"""The guide's activation functions: a prompt's or a pair's, every component, ``[seq_len, hidden_dim]``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from optipfair_engine.architectures import ModelView, locate
from optipfair_engine.bias.activations.batching import (
    Prompt,
    check_prompts,
    encode,
    inference,
    pad,
    padding_id,
    run_body,
)
from optipfair_engine.bias.activations.components import check_targets, find_sites, hooked
from optipfair_engine.bias.activations.keys import split_key
from optipfair_engine.bias.prompts.alignment import Alignment, align
from optipfair_engine.errors import InvalidOptionError


class Activations(dict[str, Tensor]):
    """Layer key → activations ``[seq_len, hidden_dim]`` (CPU, float32 or better) of one prompt.

    Attributes:
        tokens: the prompt's tokens, readable, one a position.
        token_ids: their ids.
        alignment: of the pair, if this is a side of one (``first`` says which).
    """

    def __init__(self, prompt: Prompt) -> None:
        super().__init__()
        self.tokens, self.token_ids = prompt.tokens, prompt.ids
        self.alignment: Alignment | None = None
        self.other_tokens: tuple[str, ...] = ()


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor in float32, or unchanged in float64."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def get_prompt_activations(
    model: Any, tokenizer: Any, prompt: str, target_layers: Iterable[str] | None = None
) -> Activations:
    """Activations of one prompt.

    Args:
        model: a Hugging Face model of a supported family.
        tokenizer: the model's tokenizer.
        prompt: the text.
        target_layers: components to capture (``mlp_output``, …, also ``down_proj_input``); None: the guide's
            six.

    Raises:
        UnsupportedModelError: unknown family, or none of the components found.
        InvalidOptionError: unknown component, or a prompt without tokens.
    """
    return _capture(locate(model), [encode(tokenizer, prompt)], target_layers)[0]


def get_activation_pairs(
    model: Any,
    tokenizer: Any,
    prompt1: str,
    prompt2: str,
    target_layers: Iterable[str] | None = None,
) -> tuple[Activations, Activations]:
    """Activations of both prompts of a pair, from one forward pass.

    Prompts of different lengths keep their own; ``.alignment`` says which positions correspond, and
    ``calculate_bias_metrics`` uses it. Arguments and errors as ``get_prompt_activations``.
    """
    first, second = encode(tokenizer, prompt1), encode(tokenizer, prompt2)
    # equal prompts share one row, so that they differ by exactly nothing
    rows = [first] if first.ids == second.ids else [first, second]
    captured = _capture(locate(model), rows, target_layers)
    side1, side2 = captured[0], captured[-1]
    if side1 is side2:
        side2 = Activations(second)
        side2.update(side1)
    side1.alignment = align(first.ids, second.ids, letters=(first.letters, second.letters))
    side2.alignment = side1.alignment.swapped()
    side1.other_tokens, side2.other_tokens = second.tokens, first.tokens
    return side1, side2


def _capture(view: ModelView, prompts: Sequence[Prompt], targets: Iterable[str] | None) -> list[Activations]:
    check_prompts(view, prompts)
    sites = find_sites(view, check_targets(targets))
    captured = [Activations(prompt) for prompt in prompts]

    def keep(key: str, tensor: Tensor) -> None:
        for side, row in zip(captured, _rows(tensor, len(prompts)), strict=True):
            side[key] = at_least_float32(row[: len(side.tokens)]).cpu().clone()

    batch = pad([prompt.ids for prompt in prompts], padding_id(view.model))
    with inference(view.model), hooked(sites, keep):
        run_body(view, batch)
    order = [site.key for site in sites]
    return [_ordered(side, order) for side in captured]


def _rows(tensor: Tensor, rows: int) -> Tensor:
    """``[rows, tokens, features]``, also where a family flattens rows and tokens (OPT's MLP)."""
    return tensor if tensor.dim() == 3 else tensor.reshape(rows, -1, tensor.shape[-1])


def _ordered(side: Activations, keys: Sequence[str]) -> Activations:
    values = {key: side[key] for key in keys if key in side}
    side.clear()
    side.update(values)
    return side


def get_layer_names(activations: Mapping[str, object], layer_type: str | None = None) -> list[str]:
    """The layer keys, sorted by layer number; with ``layer_type`` those of that component.

    Part of a component's name ("mlp") selects every component that contains it.
    """
    found = {key: parts for key in activations if (parts := split_key(key)) is not None}
    if layer_type is not None:
        exact = [key for key, (component, _) in found.items() if component == layer_type]
        keys = exact or [key for key in found if layer_type in key]
    else:
        keys = list(found)
    return sorted(keys, key=lambda key: found[key][1])


def select_layers(
    layer_names: Sequence[str], selection: str | Sequence[int] = "first_middle_last"
) -> list[str]:
    """Choose among one component's layer keys.

    Args:
        layer_names: sorted keys.
        selection: ``"first_middle_last"``, ``"all"``, or positions in the list.

    Raises:
        InvalidOptionError: another word, no position, or one that there isn't.
    """
    names = list(layer_names)
    if isinstance(selection, str):
        if selection == "all":
            return names
        if selection == "first_middle_last":
            return names if len(names) < 3 else [names[0], names[len(names) // 2], names[-1]]
        raise InvalidOptionError(
            f'layers must be "first_middle_last", "all" or a list of positions, got {selection!r}'
        )
    if not len(selection):
        raise InvalidOptionError('layers has no position; use "first_middle_last" or "all"')
    outside = [i for i in selection if isinstance(i, bool) or not 0 <= int(i) < len(names)]
    if outside and names:
        raise InvalidOptionError(f"No layers at positions {outside}: there are {len(names)}")
    return [names[int(i)] for i in selection] if names else []
