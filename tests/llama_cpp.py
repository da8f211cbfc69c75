"""A GGUF file loaded by llama.cpp itself."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import xllamacpp


class LlamaCpp:
    """A running server of llama.cpp; it computes in this process."""

    def __init__(self, file: Path, context: int) -> None:
        options = xllamacpp.CommonParams()
        options.model.path = str(file)
        options.n_ctx, options.n_parallel = context, 1
        options.cpuparams.n_threads = options.cpuparams_batch.n_threads = 1
        options.warmup, options.verbosity = False, 0
        # keys and values in the number type that the reference has
        options.cache_type_k = options.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        self._server: Any = xllamacpp.Server(options)

    def next_token(self, prompt: Sequence[int]) -> int:
        """The likeliest token after a prompt of token ids."""
        answer = self._completion(prompt, 1)
        return int(answer["choices"][0]["logprobs"]["content"][0]["id"])

    def tokens_per_second(self, prompt: Sequence[int], count: int) -> float:
        """How fast it generates ``count`` tokens after a prompt."""
        return float(self._completion(prompt, count)["timings"]["predicted_per_second"])

    def tokens(self, text: str) -> list[int]:
        """A text as token ids, by llama.cpp's reading of the file's tokenizer."""
        where = f"{self._server.listening_address}/tokenize"
        answer = httpx.post(where, json={"content": text, "parse_special": True}, timeout=60)
        return [int(token) for token in answer.raise_for_status().json()["tokens"]]

    def _completion(self, prompt: Sequence[int], count: int) -> dict[str, Any]:
        asked = {"prompt": list(prompt), "max_tokens": count, "temperature": 0, "n_probs": 1, "ignore_eos": True}
        answer = self._server.handle_completions(asked)
        found: dict[str, Any] = json.loads(answer) if isinstance(answer, str) else answer
        assert "choices" in found, found
        return found


@contextmanager
def llama_cpp(file: Path, context: int = 512) -> Iterator[LlamaCpp]:
    """llama.cpp with a file loaded, until the block ends."""
    running = LlamaCpp(file, context)
    try:
        yield running
    finally:
        del running._server
