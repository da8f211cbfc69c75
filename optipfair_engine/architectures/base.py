"""What a model family must say about itself: frozen data, no behaviour."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

MlpKind: TypeAlias = Literal["glu", "fused_glu", "plain"]
ComponentKind: TypeAlias = Literal[
    "attention_output", "mlp_output", "gate_proj", "up_proj", "down_proj", "input_norm"
]


@dataclass(frozen=True)
class MlpSpec:
    """Where the MLP of one layer is; paths are relative to the layer.

    ``size_attribute`` is the config's name for the intermediate size; ``None`` if the family computes it from
    the hidden size (Bloom), so that a plain load can't express another one.
    """

    kind: MlpKind
    up: str
    down: str
    gate: str | None = None
    module: str | None = "mlp"
    size_attribute: str | None = "intermediate_size"


@dataclass(frozen=True)
class AttentionSpec:
    """Where the attention of one layer is: ``query``, ``key``, ``value``, or one fused ``qkv`` (in turn).

    ``heads_refused`` says why heads can't be removed (a shape that the family's code can't represent).
    ``other_modules`` are what some layers have in place of attention (linear attention of a hybrid).
    """

    module: str = "self_attn"
    query: str | None = "self_attn.q_proj"
    key: str | None = "self_attn.k_proj"
    value: str | None = "self_attn.v_proj"
    qkv: str | None = None
    output: str = "self_attn.o_proj"
    heads_refused: str | None = None
    other_modules: tuple[str, ...] = ()


@dataclass(frozen=True)
class ExpertsSpec:
    """Where the mixture of experts of one layer is; paths are relative to the layer.

    Every tensor of the modules ``router`` and ``experts`` has one entry an expert along its first dimension.
    ``count_attribute`` is what the config calls the number of experts. ``by_groups``: the router's code
    chooses among groups of equal size, each judged by its two best experts, before it chooses experts.

    ``stored`` are the paths in a checkpoint of an expert's gate, up and down matrix, with ``{}`` for its
    number; ``None`` where a checkpoint holds the module's own tensors. ``stored_router`` is the router's path
    there, if it isn't ``router``. ``buffers`` are the router's tensors that are no parameters: transformers
    keeps them in float32 whatever the type of the weights.
    """

    count_attribute: str
    router: str = "mlp.gate"
    experts: str = "mlp.experts"
    by_groups: bool = False
    stored: tuple[str, str, str] | None = (
        "mlp.experts.{}.gate_proj",
        "mlp.experts.{}.up_proj",
        "mlp.experts.{}.down_proj",
    )
    stored_router: str | None = None
    buffers: tuple[str, ...] = ()


@dataclass(frozen=True)
class StackSpec:
    """One stack of layers: its ModuleList's path below the base model, the config's name for its length.

    ``first_layer_only`` names modules that only the first layer of a stack owns and that the layers behind
    it use (T5's relative position bias): they move along when the first layer goes. ``causal``: no position
    sees later ones.
    """

    path: str
    num_layers_attribute: str = "num_hidden_layers"
    first_layer_only: tuple[str, ...] = ()
    causal: bool = True


@dataclass(frozen=True)
class LayerLists:
    """The config's attributes that speak of single layers, and so must follow when layers are removed.

    ``values`` hold one entry a layer; ``indices`` hold layer numbers; ``leading`` count how many of the first
    layers are of a kind; ``sparse_step`` is (step attribute, attribute of the list of dense layers): the rule
    "every step-th layer is sparse" is rewritten as that list, since the numbers change.
    """

    values: tuple[str, ...] = ("layer_types", "mlp_layer_types", "no_rope_layers")
    indices: tuple[str, ...] = ("mlp_only_layers",)
    leading: tuple[str, ...] = ("first_k_dense_replace",)
    sparse_step: tuple[str, str] | None = ("decoder_sparse_step", "mlp_only_layers")


@dataclass(frozen=True)
class Architecture:
    """A model family as data, looked up by ``config.model_type`` (the text tower's, if there are several).

    ``experts`` is where the experts of its layers are, if they can be removed. ``refused`` is why the whole
    family is refused; ``width_refused`` why it can't lose neurons; ``depth_guards`` are (config attribute,
    reason): a truthy attribute refuses depth pruning.
    """

    model_type: str
    stacks: tuple[StackSpec, ...]
    mlp: MlpSpec | None
    attention: AttentionSpec | None
    input_norms: tuple[str, ...] = ("input_layernorm",)
    layer_lists: LayerLists = field(default_factory=LayerLists)
    experts: ExpertsSpec | None = None
    refused: str | None = None
    width_refused: str | None = None
    depth_refused: str | None = None
    depth_guards: tuple[tuple[str, str], ...] = (
        ("num_kv_shared_layers", "its last layers share the key/value states of earlier ones"),
    )


#: What ``per_layer_config`` calls the size of families whose config has no word for it.
UNSAID_SIZE = "mlp_intermediate_size"

#: Where the base model of a text tower may be, below the model that the user holds.
TEXT_TOWERS: tuple[str, ...] = (
    "",
    "model.",
    "transformer.",
    "model.language_model.",
    "language_model.model.",
    "language_model.",
    "model.text_model.",
)
