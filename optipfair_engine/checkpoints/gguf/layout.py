"""What a model is in a GGUF file: its architecture there, its metadata, and the name of each tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from optipfair_engine.checkpoints.gguf.rope import Rope, context_length, rope_of
from optipfair_engine.errors import CheckpointError, UnsupportedModelError

#: Family → the architecture in which llama.cpp computes it. Rotary halves of ``llama`` and ``deci`` are
#: interleaved there, so that rows of q and k change places; those of the others are not.
ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
_UNEQUAL = ("llama", "mistral", "qwen2")
_INTERLEAVED = ("llama", "deci")

_TOP = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_PARTS = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_BIASED_HEADS = (
    "{}: with biased queries, llama.cpp loads only as many heads as the hidden size divided by the size of a "
    "head: prune neurons or layers instead of heads"
)


@dataclass(frozen=True)
class GgufLayout:
    """A model as llama.cpp knows it.

    Attributes:
        architecture: ``llama``, ``qwen2``, ``qwen3``, or ``deci`` for layers of unequal sizes.
        heads: query heads of each layer.
        kv_heads: key/value heads of each layer.
        widths: MLP neurons of each layer.
        head_dim: of query, key and value.
        context_length: in tokens; no longer than a sliding window, which llama.cpp ignores here.
        rope: rotary positions.
        tied: the token embedding is the output, too, and stored once.
    """

    architecture: str
    heads: tuple[int, ...]
    kv_heads: tuple[int, ...]
    widths: tuple[int, ...]
    head_dim: int
    hidden_size: int
    vocab_size: int
    context_length: int
    rms_norm_eps: float
    rope: Rope
    tied: bool

    @classmethod
    def of(cls, config: Any, shapes: Mapping[str, Sequence[int]]) -> GgufLayout:
        """The layout of a checkpoint, from its config and the shapes of its tensors.

        Raises:
            UnsupportedModelError: llama.cpp would compute something else; the text names the family.
            CheckpointError: a tensor is missing, or of a shape that the config contradicts.
        """
        refuse_family(config)
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        layers = range(config.num_hidden_layers)
        rows = {
            part: tuple(_rows(shapes, f"model.layers.{i}.{part}.weight") for i in layers)
            for part in ("self_attn.q_proj", "self_attn.k_proj", "mlp.gate_proj")
        }
        heads = tuple(count // head_dim for count in rows["self_attn.q_proj"])
        kv_heads = tuple(count // head_dim for count in rows["self_attn.k_proj"])
        widths = rows["mlp.gate_proj"]
        equal = all(len(set(sizes)) == 1 for sizes in (heads, kv_heads, widths))
        if not equal:
            refuse_unequal(config.model_type)
        biased = any(name.endswith("self_attn.q_proj.bias") for name in shapes)
        if biased and any(count * head_dim != config.hidden_size for count in heads):
            raise UnsupportedModelError(_BIASED_HEADS.format(config.model_type))
        return cls(
            architecture=ARCHITECTURES[config.model_type] if equal else "deci",
            heads=heads,
            kv_heads=kv_heads,
            widths=widths,
            head_dim=head_dim,
            hidden_size=config.hidden_size,
            vocab_size=_rows(shapes, "model.embed_tokens.weight"),
            context_length=context_length(config),
            rms_norm_eps=config.rms_norm_eps,
            rope=rope_of(config, head_dim),
            tied=bool(config.tie_word_embeddings),
        )

    def name_of(self, name: str) -> str | None:
        """A tensor's name in the file; ``None`` for what isn't stored.

        Raises:
            UnsupportedModelError: the architecture has no such tensor.
        """
        if name.endswith("rotary_emb.inv_freq") or (self.tied and name == "lm_head.weight"):
            return None
        if name in _TOP:
            return _TOP[name]
        layer, _, rest = name.removeprefix("model.layers.").partition(".")
        part, _, kind = rest.rpartition(".")
        if not layer.isdecimal() or part not in _PARTS or kind not in ("weight", "bias"):
            raise UnsupportedModelError(
                f"{name} has no place in a GGUF file of architecture {self.architecture}"
            )
        return f"blk.{layer}.{_PARTS[part]}.{kind}"

    def arranged(self, name: str, tensor: Tensor) -> Tensor:
        """The tensor with its rows where llama.cpp looks for them: rotary pairs of q and k side by side."""
        if self.architecture not in _INTERLEAVED or not any(f".{p}_proj." in name for p in "qk"):
            return tensor
        pairs = tensor.reshape(-1, 2, self.head_dim // 2, *tensor.shape[1:])
        return pairs.transpose(1, 2).reshape(tensor.shape)

    def describe(self, writer: Any) -> None:
        """Write the metadata: one number where all layers have it, an array of one a layer under ``deci``."""
        uneven = self.architecture == "deci"
        writer.add_block_count(len(self.widths))
        writer.add_context_length(self.context_length)
        writer.add_embedding_length(self.hidden_size)
        writer.add_feed_forward_length(list(self.widths) if uneven else self.widths[0])
        writer.add_head_count(list(self.heads) if uneven else self.heads[0])
        writer.add_head_count_kv(list(self.kv_heads) if uneven else self.kv_heads[0])
        writer.add_key_length(self.head_dim)
        writer.add_value_length(self.head_dim)
        writer.add_layer_norm_rms_eps(self.rms_norm_eps)
        writer.add_vocab_size(self.vocab_size)
        writer.add_rope_dimension_count(self.head_dim)
        writer.add_rope_freq_base(self.rope.base)
        if self.rope.scaling is not None:
            import gguf

            writer.add_rope_scaling_type(gguf.RopeScalingType(self.rope.scaling))
            writer.add_rope_scaling_factor(self.rope.factor)
            if self.rope.original_context is not None:
                writer.add_rope_scaling_orig_ctx_len(self.rope.original_context)


def refuse_family(config: Any) -> None:
    """Refuse a family that isn't written, or a variant of one that llama.cpp would compute otherwise.

    Raises:
        UnsupportedModelError: names the family and the ones that are written.
    """
    family = config.model_type
    if family not in ARCHITECTURES:
        raise UnsupportedModelError(
            f"{family}: GGUF files are written of {', '.join(ARCHITECTURES)} models; for {family}, use "
            "convert_hf_to_gguf.py of llama.cpp on the checkpoint, if its layers are of equal size"
        )
    named = config.architectures or ()
    if named and not all(str(name).endswith("ForCausalLM") for name in named):
        raise UnsupportedModelError(
            f"{family}: {named[0]} is no causal language model, which a GGUF file holds"
        )
    if config.hidden_act not in ("silu", "swish"):
        raise UnsupportedModelError(
            f"{family}: llama.cpp computes its MLP with silu, and this model has {config.hidden_act}"
        )


def refuse_unequal(family: str) -> None:
    """Refuse layers of unequal sizes where llama.cpp has no architecture for them.

    Raises:
        UnsupportedModelError: names the family and what would be right.
    """
    if family not in _UNEQUAL:
        raise UnsupportedModelError(
            f"{family}: llama.cpp loads layers of unequal sizes only of Llama-like models "
            f"({', '.join(_UNEQUAL)}); its norms of queries and keys have no place there. Prune all "
            'layers to one size: allocation "uniform", without layer_indices'
        )


def refuse_fewer_heads(config: Any) -> None:
    """Refuse to lose heads where llama.cpp takes queries to be as many numbers as the hidden size has.

    Raises:
        UnsupportedModelError: names the family and what would be right.
    """
    if config.model_type == "qwen2" or getattr(config, "attention_bias", False):
        raise UnsupportedModelError(_BIASED_HEADS.format(config.model_type))


def _rows(shapes: Mapping[str, Sequence[int]], name: str) -> int:
    if name not in shapes:
        raise CheckpointError(f"the checkpoint lacks {name}")
    return int(shapes[name][0])
