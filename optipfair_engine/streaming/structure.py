"""What the result must look like, by the model's own code: the same plan applied to a model without weights.

The model is built on the meta device from the source's config, compared with the source, shrunk by the very
``apply_plan`` that shrinks models in memory, and asked for its config. That takes a fraction of a second, but
transformers' import takes longer than copying gigabytes: ``build_on_meta`` is made to run in a thread
beside the copying.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from optipfair_engine.errors import UnsupportedModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from optipfair_engine.architectures import ModelView
    from optipfair_engine.plans.plan import PruningPlan
    from optipfair_engine.streaming.layout import CheckpointLayout


def build_on_meta(folder: Path) -> PreTrainedModel:
    """The model of a folder's config, without weights.

    Raises:
        CheckpointError: transformers doesn't accept the config.
    """
    from optipfair_engine.checkpoints.loading import load_config, model_class_of, sized_class

    config = load_config(folder)
    model_class = model_class_of(config)
    with torch.device("meta"):
        model = sized_class(model_class, config)(config)
    model.__class__ = model_class
    return model


def write_config(model: PreTrainedModel, layout: CheckpointLayout, plan: PruningPlan, output: Path) -> None:
    """Shrink a model on the meta device by a plan, and write the config that it then has.

    Args:
        model: of the source's config, see ``build_on_meta``; it is shrunk in place.
        layout: of the source; everything that was read off its names is compared with the model first.
        plan: what stays.
        output: the folder for ``config.json``.

    Raises:
        UnsupportedModelError: the source's tensors are not named as the model's are.
    """
    from optipfair_engine.architectures import locate
    from optipfair_engine.plans.apply import apply_plan

    check_names(model, layout)
    _check_roles(locate(model), layout, plan)
    model = apply_plan(model, plan, inplace=True)
    model.config.architectures = [type(model).__name__]
    model.config.dtype = layout.dtype
    model.config.save_pretrained(output)


def check_names(model: PreTrainedModel, layout: CheckpointLayout) -> None:
    """Raise ``UnsupportedModelError`` unless names and shapes of the checkpoint are the model's."""
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    whole, stacked = layout.in_the_model()
    stored = {name: layout.source.info(held).shape for name, held in whole.items()}
    stored |= {name: stack.shape for name, stack in stacked.items()}
    for name in sorted((shapes.keys() | stored.keys()) - tied):
        if shapes.get(name) != stored.get(name):
            raise UnsupportedModelError(
                f"{layout.model_type}: {name} is {stored.get(name, 'not')} in the checkpoint and "
                f"{shapes.get(name, 'not')} in the model of its config; only equal ones are streamed"
            )


def _check_roles(view: ModelView, layout: CheckpointLayout, plan: PruningPlan) -> None:
    """Compare what names and shapes told with what the modules tell."""
    differing = [] if view.layers_path == layout.layers_path else ["the layers"]
    for layer in plan.kept_neurons:
        mlp, stored = view.mlp(layer), layout.mlp(layer)
        told = (stored.names, stored.kind, stored.down_transposed, stored.intermediate_size)
        if told != (mlp.names, mlp.kind, mlp.down_transposed, mlp.intermediate_size):
            differing.append(f"the MLP of layer {layer}")
    for layer in plan.kept_heads:
        block, kept = view.attention(layer), layout.attention(layer)
        told_heads = (kept.names, kept.o_transposed, kept.head_dim, kept.num_heads, kept.num_key_value_heads)
        found = (block.names, block.o_transposed, block.head_dim, block.num_heads, block.num_key_value_heads)
        if told_heads != found:
            differing.append(f"the attention of layer {layer}")
    for layer in plan.kept_experts:
        experts, held = view.experts(layer), layout.experts(layer)
        if (held.num_experts, sorted(held.names)) != (experts.num_experts, sorted(experts.names)):
            differing.append(f"the experts of layer {layer}")
    if differing:
        raise UnsupportedModelError(
            f"{layout.model_type}: {', '.join(differing)} can't be told from names alone"
        )
