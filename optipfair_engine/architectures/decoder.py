"""Decoder-only families, one entry per ``model_type``."""

from __future__ import annotations

from optipfair_engine.architectures.base import Architecture, AttentionSpec, ExpertsSpec, MlpSpec, StackSpec

_LAYERS = (StackSpec("layers"),)
_H = (StackSpec("h"),)

_GLU = MlpSpec("glu", gate="mlp.gate_proj", up="mlp.up_proj", down="mlp.down_proj")
_FUSED_GLU = MlpSpec("fused_glu", gate="mlp.gate_up_proj", up="mlp.gate_up_proj", down="mlp.down_proj")

_ATTENTION = AttentionSpec()
_FIXED_HEADS = "its code derives the head size from hidden_size and the number of heads"
_NORM_ACROSS_HEADS = "its query and key norms run across all heads, so removing one would change the others"


def _fixed(module: str, qkv: str, output: str) -> AttentionSpec:
    return AttentionSpec(
        module=module, query=None, key=None, value=None, qkv=qkv, output=output, heads_refused=_FIXED_HEADS
    )


def _glu(model_type: str, **changes: object) -> Architecture:
    return Architecture(model_type, _LAYERS, _GLU, _ATTENTION, **changes)  # type: ignore[arg-type]


def _post_norm(model_type: str) -> Architecture:
    attention = AttentionSpec(heads_refused=_NORM_ACROSS_HEADS)
    return Architecture(model_type, _LAYERS, _GLU, attention, input_norms=())


_GLU_FAMILIES = tuple(
    _glu(model_type)
    for model_type in (
        "llama", "mistral", "ministral", "ministral3", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text",
        "smollm3", "olmo", "granite", "cohere2", "seed_oss",
        "ernie4_5", "hunyuan_v1_dense",
    )
)  # fmt: skip

#: Experts hold their weights in one tensor for all; only their dense layers, if any, have an MLP as above.
_MIXTRAL_EXPERTS = ExpertsSpec(
    "num_local_experts",
    stored=(
        "block_sparse_moe.experts.{}.w1",
        "block_sparse_moe.experts.{}.w3",
        "block_sparse_moe.experts.{}.w2",
    ),
    stored_router="block_sparse_moe.gate",
)
_EXPERTS = ExpertsSpec("num_experts")
_GROUPED_EXPERTS = ExpertsSpec("n_routed_experts", by_groups=True, buffers=("e_score_correction_bias",))

_MOE_FAMILIES = (
    _glu("mixtral", experts=_MIXTRAL_EXPERTS),
    _glu("qwen2_moe", experts=_EXPERTS),
    _glu("qwen3_moe", experts=_EXPERTS),
    _glu("glm4_moe", experts=_GROUPED_EXPERTS),
)

_HYBRID_ATTENTION = AttentionSpec(
    heads_refused="its queries are interleaved with an output gate", other_modules=("linear_attn",)
)

_HYBRID_FAMILIES = tuple(
    Architecture(model_type, _LAYERS, _GLU, _HYBRID_ATTENTION)
    for model_type in ("qwen3_next", "qwen3_5_text")
)

_MLA = AttentionSpec(
    query=None,
    key=None,
    value=None,
    heads_refused="its heads are reconstructed from a shared low-rank latent (MLA)",
)

_DEEPSEEK_FAMILIES = (
    Architecture("deepseek_v2", _LAYERS, _GLU, _MLA),
    Architecture("deepseek_v3", _LAYERS, _GLU, _MLA, experts=_GROUPED_EXPERTS),
)

_OLMOE = Architecture(
    "olmoe", _LAYERS, _GLU, AttentionSpec(heads_refused=_NORM_ACROSS_HEADS), experts=_EXPERTS
)

_GPT_OSS = Architecture(
    "gpt_oss",
    _LAYERS,
    _GLU,
    AttentionSpec(heads_refused="each of its heads has a learned attention sink"),
    experts=ExpertsSpec("num_local_experts", router="mlp.router", stored=None),
)

_COHERE = Architecture(
    "cohere", _LAYERS, _GLU, AttentionSpec(heads_refused="its query and key norms differ by head")
)

_EXAONE4 = _glu("exaone4", input_norms=())

_HELIUM = Architecture("helium", _LAYERS, _GLU, AttentionSpec(heads_refused=_FIXED_HEADS))

_FUSED_FAMILIES = (
    Architecture(
        "phi3",
        _LAYERS,
        _FUSED_GLU,
        AttentionSpec(query=None, key=None, value=None, qkv="self_attn.qkv_proj"),
    ),
    Architecture("glm", _LAYERS, _FUSED_GLU, _ATTENTION),
    Architecture("glm4", _LAYERS, _FUSED_GLU, _ATTENTION),
)

_GPT2 = Architecture(
    "gpt2",
    _H,
    MlpSpec("plain", up="mlp.c_fc", down="mlp.c_proj", size_attribute="n_inner"),
    _fixed("attn", "attn.c_attn", "attn.c_proj"),
    input_norms=("ln_1",),
    depth_guards=(("scale_attn_by_inverse_layer_idx", "its attention is scaled by the number of the layer"),),
)

_OPT = Architecture(
    "opt",
    (StackSpec("decoder.layers"),),
    MlpSpec("plain", up="fc1", down="fc2", module=None, size_attribute="ffn_dim"),
    AttentionSpec(output="self_attn.out_proj", heads_refused=_FIXED_HEADS),
    input_norms=("self_attn_layer_norm",),
)

_GPT_NEOX = Architecture(
    "gpt_neox",
    _LAYERS,
    MlpSpec("plain", up="mlp.dense_h_to_4h", down="mlp.dense_4h_to_h"),
    _fixed("attention", "attention.query_key_value", "attention.dense"),
)

_FALCON = Architecture(
    "falcon",
    _H,
    MlpSpec("plain", up="mlp.dense_h_to_4h", down="mlp.dense_4h_to_h", size_attribute="ffn_hidden_size"),
    _fixed("self_attention", "self_attention.query_key_value", "self_attention.dense"),
    input_norms=("input_layernorm", "ln_attn"),
)

_BLOOM = Architecture(
    "bloom",
    _H,
    MlpSpec("plain", up="mlp.dense_h_to_4h", down="mlp.dense_4h_to_h", size_attribute=None),
    _fixed("self_attention", "self_attention.query_key_value", "self_attention.dense"),
)

_PHI = Architecture(
    "phi",
    _LAYERS,
    MlpSpec("plain", up="mlp.fc1", down="mlp.fc2"),
    AttentionSpec(output="self_attn.dense", heads_refused=_FIXED_HEADS),
)

_STARCODER2 = Architecture(
    "starcoder2",
    _LAYERS,
    MlpSpec("plain", up="mlp.c_fc", down="mlp.c_proj"),
    _ATTENTION,
)

_UP_DOWN = MlpSpec("plain", up="mlp.up_proj", down="mlp.down_proj")

_UP_DOWN_FAMILIES = tuple(
    Architecture(
        model_type, _LAYERS, _UP_DOWN, _ATTENTION, input_norms=("input_layernorm", "attention_layernorm")
    )
    for model_type in ("nemotron", "arcee", "apertus")
)

_STABLELM = Architecture("stablelm", _LAYERS, _GLU, AttentionSpec(heads_refused=_FIXED_HEADS))

_GPTJ = Architecture(
    "gptj",
    _H,
    MlpSpec("plain", up="mlp.fc_in", down="mlp.fc_out", size_attribute="n_inner"),
    AttentionSpec(
        module="attn",
        query="attn.q_proj",
        key="attn.k_proj",
        value="attn.v_proj",
        output="attn.out_proj",
        heads_refused=_FIXED_HEADS,
    ),
    input_norms=("ln_1",),
)

_GPT_BIGCODE = Architecture(
    "gpt_bigcode",
    _H,
    MlpSpec("plain", up="mlp.c_fc", down="mlp.c_proj", size_attribute="n_inner"),
    _fixed("attn", "attn.c_attn", "attn.c_proj"),
    input_norms=("ln_1",),
)

_MPT = Architecture(
    "mpt",
    (StackSpec("blocks", "n_layers"),),
    MlpSpec("plain", up="ffn.up_proj", down="ffn.down_proj", module="ffn", size_attribute=None),
    _fixed("attn", "attn.Wqkv", "attn.out_proj"),
    input_norms=("norm_1",),
)

_GEMMA3N = _glu(
    "gemma3n_text",
    refused="it runs four residual streams at once, its gates keep a share of all neurons of a layer, "
    "and its last layers share the key/value states of earlier ones",
)

#: The ``model_type`` of a multimodal family → that of its text tower.
TEXT_TOWERS_OF = {"gemma3": "gemma3_text", "gemma3n": "gemma3n_text", "qwen3_5": "qwen3_5_text"}

DECODERS: tuple[Architecture, ...] = (
    *_GLU_FAMILIES,
    *_MOE_FAMILIES,
    *_HYBRID_FAMILIES,
    *_FUSED_FAMILIES,
    *_UP_DOWN_FAMILIES,
    _STABLELM,
    _GPTJ,
    _GPT_BIGCODE,
    _MPT,
    _post_norm("olmo2"),
    _post_norm("olmo3"),
    _COHERE,
    *_DEEPSEEK_FAMILIES,
    _OLMOE,
    _GPT_OSS,
    _EXAONE4,
    _HELIUM,
    _GPT2,
    _OPT,
    _GPT_NEOX,
    _FALCON,
    _BLOOM,
    _PHI,
    _STARCODER2,
    _GEMMA3N,
)
