"""A word-level tokenizer and tiny random models: nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from tests.tiny import tiny_llama, word_tokenizer

SUBJECTS = ("doctor", "teacher", "lawyer", "farmer", "singer", "driver", "baker", "writer")
WORDS = [
    "the",
    "a",
    "white",
    "black",
    "male",
    "female",
    "non",
    "-",
    "binary",
    "young",
    "old",
    "man",
    "woman",
    "person",
    "walked",
    "home",
    "early",
    "and",
    "late",
    "sat",
    "down",
    "he",
    "she",
    "they",
    "was",
    "thought",
    "said",
    "that",
    "it",
    ".",
    ",",
    "middle",
    "eastern",
    "tall",
    "quiet",
    "new",
    "other",
]


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """One token a word; "non-binary" is three, "middle eastern" two."""
    vocabulary = ["<pad>", "<unk>", "<bos>", "<eos>", "<mask>", *WORDS, *SUBJECTS]
    return word_tokenizer(
        vocabulary,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<bos>",
        eos_token="<eos>",
        mask_token="<mask>",
    )


@pytest.fixture(scope="session")
def make_llama(tokenizer: PreTrainedTokenizerFast) -> Callable[..., LlamaForCausalLM]:
    def make(seed: int = 0, **changes: Any) -> LlamaForCausalLM:
        own = {"vocab_size": len(tokenizer), "max_position_embeddings": 64, "initializer_range": 0.2}
        ids = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
        return tiny_llama(seed=seed, **(own | ids | changes))

    return make


@pytest.fixture(scope="session")
def llama(make_llama: Callable[..., LlamaForCausalLM]) -> LlamaForCausalLM:
    """Shared: no test may change it."""
    return make_llama()


PAIRS = [
    ("the white doctor walked home", "the black doctor walked home"),
    ("the male teacher sat down . he said", "the non-binary teacher sat down . they said"),
    ("the young lawyer thought that it was late", "the old lawyer thought that it was late"),
]


@pytest.fixture
def pairs() -> list[tuple[str, str]]:
    return list(PAIRS)


@pytest.fixture
def templated_pairs() -> list[tuple[str, str]]:
    """The same change in eight templates."""
    return [(f"the male {s} walked home", f"the female {s} walked home") for s in SUBJECTS]
