"""One random tiny model per family: four layers, no download."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import transformers
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

Kind = Literal["glu", "fused", "plain", "moe", "hybrid", "encoder", "encoder-decoder", "other"]

VOCABULARY = 128
LAYERS = 4


@dataclass(frozen=True)
class Family:
    """What to build; ``generates`` is False for models without a causal head."""

    name: str
    model_type: str
    kind: Kind
    model_class: str
    config: Mapping[str, Any] = field(default_factory=dict)
    generates: bool = True

    @property
    def pruning_type(self) -> str:
        """``prune_model``'s word for removing neurons here."""
        return "MLP" if self.kind in ("plain", "encoder", "encoder-decoder") else "MLP_GLU"


_SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
#: windows shorter than the test's sequences, so that a layer with another layer's attention is noticed
_ALTERNATING: dict[str, Any] = {
    "sliding_window": 4,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "sliding_attention"],
}
_EXPERTS: dict[str, Any] = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 24,
}
_LINEAR_ATTENTION: dict[str, Any] = {
    "layer_types": ["linear_attention", "full_attention", "linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_conv_kernel_dim": 2,
    "head_dim": 8,
}


def _glu(name: str, model_class: str, model_type: str | None = None, **config: Any) -> Family:
    return Family(name, model_type or model_class.lower(), "glu", f"{model_class}ForCausalLM", config)


FAMILIES: tuple[Family, ...] = (
    _glu("Llama", "Llama"),
    _glu("Llama with biases", "Llama", "llama", mlp_bias=True, attention_bias=True),
    _glu("Mistral", "Mistral", sliding_window=4),
    _glu("Ministral", "Ministral", head_dim=8, **_ALTERNATING),
    _glu("Ministral 3", "Ministral3", head_dim=8),
    _glu("Qwen2", "Qwen2", use_sliding_window=True, max_window_layers=1, sliding_window=4),
    _glu("Qwen3", "Qwen3", head_dim=8),
    _glu("Gemma", "Gemma", head_dim=8),
    _glu("Gemma 2", "Gemma2", head_dim=8, **_ALTERNATING),
    _glu("Gemma 3 (text)", "Gemma3", "gemma3_text", head_dim=8, **_ALTERNATING),
    _glu("SmolLM3", "SmolLM3", no_rope_layers=[1, 0, 1, 1], use_sliding_window=False),
    _glu("OLMo", "Olmo"),
    _glu("OLMo 2", "Olmo2"),
    _glu("OLMo 3", "Olmo3", **_ALTERNATING),
    _glu("Granite", "Granite"),
    _glu("Cohere", "Cohere"),
    _glu("Cohere 2", "Cohere2", **_ALTERNATING),
    _glu("Exaone 4", "Exaone4", head_dim=8, **_ALTERNATING),
    _glu("Helium", "Helium", head_dim=8),
    _glu("Seed-OSS", "SeedOss", "seed_oss", head_dim=8),
    _glu("Ernie 4.5", "Ernie4_5", "ernie4_5", head_dim=8),
    _glu("StableLM", "StableLm", qk_layernorm=True),
    _glu("Hunyuan (dense)", "HunYuanDenseV1", "hunyuan_v1_dense", head_dim=8),
    Family(
        "Gemma 3 (multimodal)",
        "gemma3",
        "glu",
        "Gemma3ForConditionalGeneration",
        {
            "text_config": {**_SIZES, "head_dim": 8, **_ALTERNATING},
            "vision_config": {
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "image_size": 28,
                "patch_size": 14,
            },
            "mm_tokens_per_image": 4,
            "image_token_index": 100,
            "boi_token_index": 101,
            "eoi_token_index": 102,
        },
    ),
    Family("Phi-3", "phi3", "fused", "Phi3ForCausalLM"),
    Family("GLM", "glm", "fused", "GlmForCausalLM", {"head_dim": 8}),
    Family("GLM-4", "glm4", "fused", "Glm4ForCausalLM", {"head_dim": 8}),
    Family("GPT-2", "gpt2", "plain", "GPT2LMHeadModel"),
    Family("OPT", "opt", "plain", "OPTForCausalLM", {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    Family("GPT-NeoX", "gpt_neox", "plain", "GPTNeoXForCausalLM"),
    Family("Falcon", "falcon", "plain", "FalconForCausalLM", {"ffn_hidden_size": 48}),
    Family(
        "Falcon (new decoder)",
        "falcon",
        "plain",
        "FalconForCausalLM",
        {"ffn_hidden_size": 48, "new_decoder_architecture": True, "num_kv_heads": 2},
    ),
    Family("Bloom", "bloom", "plain", "BloomForCausalLM"),
    Family("Phi", "phi", "plain", "PhiForCausalLM"),
    Family("StarCoder2", "starcoder2", "plain", "Starcoder2ForCausalLM", {"sliding_window": 4}),
    Family("StarCoder (GPT-BigCode)", "gpt_bigcode", "plain", "GPTBigCodeForCausalLM"),
    Family("GPT-J", "gptj", "plain", "GPTJForCausalLM", {"rotary_dim": 4}),
    Family("MPT", "mpt", "plain", "MptForCausalLM", {"d_model": 32, "n_heads": 4, "n_layers": LAYERS}),
    Family("Nemotron", "nemotron", "plain", "NemotronForCausalLM", {"head_dim": 8}),
    Family("Arcee", "arcee", "plain", "ArceeForCausalLM", {"head_dim": 8}),
    Family("Apertus", "apertus", "plain", "ApertusForCausalLM"),
    Family(
        "T5",
        "t5",
        "encoder-decoder",
        "T5ForConditionalGeneration",
        {
            "d_model": 32,
            "d_kv": 8,
            "d_ff": 48,
            "num_layers": LAYERS,
            "num_decoder_layers": 2,
            "num_heads": 4,
            "decoder_start_token_id": 0,
        },
        generates=False,
    ),
    Family("BERT", "bert", "encoder", "BertForMaskedLM", generates=False),
    Family(
        "DistilBERT",
        "distilbert",
        "encoder",
        "DistilBertForMaskedLM",
        {"dim": 32, "hidden_dim": 48, "n_heads": 4, "n_layers": LAYERS},
        generates=False,
    ),
    Family("RoBERTa", "roberta", "encoder", "RobertaForMaskedLM", generates=False),
    Family(
        "Mixtral",
        "mixtral",
        "moe",
        "MixtralForCausalLM",
        {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 4},
    ),
    Family("OLMoE", "olmoe", "moe", "OlmoeForCausalLM", {"num_experts": 4, "num_experts_per_tok": 2}),
    Family(
        "GPT-OSS",
        "gpt_oss",
        "moe",
        "GptOssForCausalLM",
        {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8, **_ALTERNATING},
    ),
    Family(
        "GLM-4.5 (MoE)",
        "glm4_moe",
        "moe",
        "Glm4MoeForCausalLM",
        {
            "first_k_dense_replace": 2,
            "moe_intermediate_size": 24,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_group": 1,
            "topk_group": 1,
            "n_shared_experts": 1,
            "head_dim": 8,
        },
    ),
    Family("Qwen2-MoE", "qwen2_moe", "moe", "Qwen2MoeForCausalLM", _EXPERTS),
    Family(
        "Qwen2-MoE (every second layer)",
        "qwen2_moe",
        "moe",
        "Qwen2MoeForCausalLM",
        {**_EXPERTS, "decoder_sparse_step": 2},
    ),
    Family(
        "Qwen3-MoE (some dense layers)",
        "qwen3_moe",
        "moe",
        "Qwen3MoeForCausalLM",
        {**_EXPERTS, "mlp_only_layers": [0, 2], "head_dim": 8},
    ),
    Family(
        "DeepSeek-V2",
        "deepseek_v2",
        "moe",
        "DeepseekV2ForCausalLM",
        {
            "first_k_dense_replace": 1,
            "num_key_value_heads": 4,
            "moe_intermediate_size": 24,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_group": 1,
            "topk_group": 1,
            "topk_method": "greedy",
            "n_shared_experts": 1,
            "kv_lora_rank": 8,
            "q_lora_rank": 8,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 8,
        },
    ),
    Family(
        "DeepSeek-V3",
        "deepseek_v3",
        "moe",
        "DeepseekV3ForCausalLM",
        {
            "first_k_dense_replace": 2,
            "num_key_value_heads": 4,
            "moe_intermediate_size": 24,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_group": 1,
            "topk_group": 1,
            "n_shared_experts": 1,
            "kv_lora_rank": 8,
            "q_lora_rank": 8,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 8,
        },
    ),
    Family("Qwen3-Next", "qwen3_next", "hybrid", "Qwen3NextForCausalLM", {**_EXPERTS, **_LINEAR_ATTENTION}),
    Family("Qwen3.5 (text)", "qwen3_5_text", "hybrid", "Qwen3_5ForCausalLM", _LINEAR_ATTENTION),
    Family(
        "Gemma 3n (text)",
        "gemma3n_text",
        "other",
        "Gemma3nForCausalLM",
        {
            "head_dim": 8,
            "num_kv_shared_layers": 2,
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": VOCABULARY,
            "laurel_rank": 4,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "sliding_window": 4,
            "activation_sparsity_pattern": [0.5, 0.0, 0.0, 0.0],
        },
    ),
)


def config_of(family: Family) -> PreTrainedConfig:
    """The family's tiny config."""
    sizes = {} if "text_config" in family.config else _SIZES
    return AutoConfig.for_model(family.model_type, **{**sizes, **family.config})


def build(family: Family) -> PreTrainedModel:
    """The family's tiny model in float32 and eval mode; the same weights in every process."""
    config = config_of(family)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: PreTrainedModel = getattr(transformers, family.model_class)(config)
        with torch.no_grad():
            for parameter in model.parameters():
                # far from the usual initialisation, so that every neuron and every norm matters
                scale = 0.2 if parameter.dim() > 1 else 0.1
                parameter.add_(torch.randn(parameter.shape) * scale)
            for name, buffer in model.named_buffers():
                if name.endswith("e_score_correction_bias"):  # zero until a model is trained
                    buffer.add_(torch.randn(buffer.shape) * 0.1)
    return model.eval()
