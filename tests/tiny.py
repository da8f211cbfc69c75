"""The tiny models and tokenizers of all tests: random, made in milliseconds, the same each time.

torch and transformers are imported where a model is made: the tests of the service write theirs without them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.numpy import save_file

if TYPE_CHECKING:
    from transformers import (
        LlamaForCausalLM,
        PreTrainedConfig,
        PreTrainedModel,
        PreTrainedTokenizerBase,
        PreTrainedTokenizerFast,
    )

#: Sizes of a tiny model of any family, by the words that transformers' configs share.
SIZES: Mapping[str, int] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def tiny_config(family: str = "llama", **changes: Any) -> PreTrainedConfig:
    """The config of a tiny model of a ``model_type``.

    ``changes`` are further keywords, or other sizes. A size that the family's config has no word for is left
    out.
    """
    from transformers import AutoConfig

    known = AutoConfig.for_model(family)
    sizes = {name: size for name, size in SIZES.items() if hasattr(known, name)}
    return AutoConfig.for_model(family, **(sizes | changes))


def tiny_model(family: str, *, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A causal language model with random weights, in float32 and eval mode.

    Torch is seeded, so that what a test draws afterwards is the same each time too.
    """
    import torch
    from transformers import AutoModelForCausalLM

    config = tiny_config(family, **changes)
    torch.manual_seed(seed)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return model.eval()


def tiny_llama(*, seed: int = 0, **changes: Any) -> LlamaForCausalLM:
    """``tiny_model("llama", …)``."""
    model: LlamaForCausalLM = tiny_model("llama", seed=seed, **changes)  # type: ignore[assignment]
    return model


def word_tokenizer(words: Sequence[str], **special: str) -> PreTrainedTokenizerFast:
    """One token a word, numbered as listed; ``special`` says what the special words are (``unk_token=…``)."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    numbers = {word: number for number, word in enumerate(words)}
    inner = Tokenizer(models.WordLevel(numbers, unk_token=special["unk_token"]))
    inner.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.Punctuation()])
    return PreTrainedTokenizerFast(tokenizer_object=inner, **special)


def byte_tokenizer(texts: Iterable[str], *, vocab_size: int = 300, **options: Any) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer that takes any text; 0 is ``<pad>`` and 1 is ``<eos>``."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    special = {"pad_token": "<pad>", "eos_token": "<eos>"}
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(
        texts, vocab_size=vocab_size, special_tokens=list(special.values()), show_progress=False
    )
    return PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, **special, **options)


def write_checkpoint(
    folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None = None, **options: Any
) -> Path:
    """Write a model and its tokenizer as transformers does; ``options`` go to ``save_pretrained``."""
    model.save_pretrained(folder, **options)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return folder


HIDDEN, INTERMEDIATE, LAYERS, VOCAB = 16, 64, 2, 32
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "intermediate_size": INTERMEDIATE,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": VOCAB,
    "max_position_embeddings": 64,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "dtype": "float32",
}


def shapes() -> dict[str, tuple[int, ...]]:
    """Every tensor of the model."""
    head = HIDDEN // 2
    found: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (VOCAB, HIDDEN),
        "model.norm.weight": (HIDDEN,),
        "lm_head.weight": (VOCAB, HIDDEN),
    }
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        found |= {
            f"{prefix}self_attn.q_proj.weight": (HIDDEN, HIDDEN),
            f"{prefix}self_attn.k_proj.weight": (head, HIDDEN),
            f"{prefix}self_attn.v_proj.weight": (head, HIDDEN),
            f"{prefix}self_attn.o_proj.weight": (HIDDEN, HIDDEN),
            f"{prefix}mlp.gate_proj.weight": (INTERMEDIATE, HIDDEN),
            f"{prefix}mlp.up_proj.weight": (INTERMEDIATE, HIDDEN),
            f"{prefix}mlp.down_proj.weight": (HIDDEN, INTERMEDIATE),
            f"{prefix}input_layernorm.weight": (HIDDEN,),
            f"{prefix}post_attention_layernorm.weight": (HIDDEN,),
        }
    return found


def write_tiny_llama(folder: Path, *, nan_in: str | None = None) -> Path:
    """Write the model; `nan_in` names a tensor that gets one NaN."""
    random = np.random.default_rng(0)
    tensors = {
        name: (random.standard_normal(shape) * 0.1).astype(np.float32) for name, shape in shapes().items()
    }
    if nan_in is not None:
        tensors[nan_in].flat[3] = np.nan
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def write_word_tokenizer(folder: Path) -> Path:
    """Add a tokenizer that knows the words w3 to w31 to a folder of that model, without transformers."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {"<unk>": 0, "<bos>": 1, "<eos>": 2, **{f"w{i}": i for i in range(3, VOCAB)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>", "eos_token": "<eos>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    return folder
