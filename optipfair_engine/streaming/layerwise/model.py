"""A model whose weights are mapped files: it takes no private memory for them, whatever its size.

Reading a weight brings its pages into the page cache, from where the system may take them away again. What is
private are activations, the few buffers that are computed (rotary frequencies), one layer's experts where
they are stored one by one, and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

from optipfair_engine.streaming.layerwise.experts import ExpertsInTurn
from optipfair_engine.streaming.layout import CheckpointLayout
from optipfair_engine.streaming.structure import check_names

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def mapped_model(layout: CheckpointLayout) -> PreTrainedModel:
    """The model of a checkpoint, its parameters views of the checkpoint's files, in eval mode.

    Don't write to the weights: what is written would become private memory, and is never saved.

    Raises:
        CheckpointError: transformers doesn't accept the config.
        UnsupportedModelError: the checkpoint's tensors are not named or typed as the model's are.
    """
    from accelerate import init_empty_weights
    from transformers.initialization import no_init_weights

    from optipfair_engine.checkpoints.loading import load_config, model_class_of, sized_class

    config = load_config(layout.source.path)
    model_class = model_class_of(config)
    # buffers that no checkpoint holds must be computed, so only parameters are left without memory
    with no_init_weights(), init_empty_weights(include_buffers=False), _default_dtype(layout.dtype):
        model = sized_class(model_class, config)(config)
    model.__class__ = model_class
    check_names(model, layout)
    whole, stacked = layout.in_the_model()
    for name, stored in whole.items():
        _put(model, name, layout.source.tensor(stored))
    ExpertsInTurn(layout.source).attend(model, stacked)
    model.tie_weights()
    evaluating: PreTrainedModel = model.eval()
    return evaluating


def _put(model: nn.Module, name: str, tensor: torch.Tensor) -> None:
    owner_name, _, attribute = name.rpartition(".")
    try:
        owner = model.get_submodule(owner_name)
    except AttributeError:  # a stored copy of a tied weight whose module the model lacks
        return
    if attribute in owner._parameters:
        setattr(owner, attribute, nn.Parameter(tensor, requires_grad=False))
    elif attribute in owner._buffers:
        setattr(owner, attribute, tensor)


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Build inside the block as ``from_pretrained`` does: what is computed there has the model's own type."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
