"""Encoder and encoder-decoder families."""

from __future__ import annotations

from optipfair_engine.architectures.base import Architecture, AttentionSpec, MlpSpec, StackSpec

_BERT, _ROBERTA = (
    Architecture(
        model_type,
        (StackSpec("encoder.layer", causal=False),),
        MlpSpec("plain", up="intermediate.dense", down="output.dense", module=None),
        AttentionSpec(
            module="attention",
            query="attention.self.query",
            key="attention.self.key",
            value="attention.self.value",
            output="attention.output.dense",
            heads_refused="its code derives the head size from hidden_size and the number of heads",
        ),
        input_norms=(),
    )
    for model_type in ("bert", "roberta")
)

_DISTILBERT = Architecture(
    "distilbert",
    (StackSpec("transformer.layer", "n_layers", causal=False),),
    MlpSpec("plain", up="ffn.lin1", down="ffn.lin2", module="ffn", size_attribute="hidden_dim"),
    AttentionSpec(
        module="attention",
        query="attention.q_lin",
        key="attention.k_lin",
        value="attention.v_lin",
        output="attention.out_lin",
        heads_refused="its code derives the head size from hidden_size and the number of heads",
    ),
    input_norms=(),
)

_RELATIVE_BIAS = ("layer.0.SelfAttention.relative_attention_bias",)

_T5 = Architecture(
    "t5",
    (
        StackSpec("encoder.block", "num_layers", _RELATIVE_BIAS, causal=False),
        StackSpec("decoder.block", "num_decoder_layers", _RELATIVE_BIAS),
    ),
    None,
    AttentionSpec(
        module="layer.0.SelfAttention",
        query="layer.0.SelfAttention.q",
        key="layer.0.SelfAttention.k",
        value="layer.0.SelfAttention.v",
        output="layer.0.SelfAttention.o",
        heads_refused="its relative position bias is shared by all layers",
    ),
    input_norms=("layer.0.layer_norm",),
    width_refused="encoder and decoder share one intermediate size; only depth and importance are supported",
)

ENCODERS: tuple[Architecture, ...] = (_BERT, _ROBERTA, _DISTILBERT, _T5)
