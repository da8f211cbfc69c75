"""A GGUF file loaded by llama.cpp itself."""

from __future__ import annotations

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
        self._client = httpx.Client(timeout=120)

    def close(self) -> None:
        """Stop it, and give its memory back."""
        self._client.close()
        del self._server

    def next_token(self, prompt: Sequence[int]) -> int:
        """The likeliest token after a prompt of token ids."""
        (token,) = self._completion(prompt, 1)["tokens"]
        return int(token)

    def tokens_per_second(self, prompt: Sequence[int], count: int) -> float:
        """How fast it generates ``count`` tokens after a prompt."""
        return float(self._completion(prompt, count)["timings"]["predicted_per_second"])

    def tokens(self, text: str) -> list[int]:
        """A text as token ids, by llama.cpp's reading of the file's tokenizer."""
        answer = self._post("tokenize", {"content": text, "parse_special": True})
        return [int(token) for token in answer["tokens"]]

    def _completion(self, prompt: Sequence[int], count: int) -> dict[str, Any]:
        asked = {"prompt": list(prompt), "n_predict": count, "temperature": 0, "ignore_eos": True}
        return self._post("completion", asked | {"return_tokens": True, "cache_prompt": True})

    def _post(self, path: str, asked: dict[str, Any]) -> dict[str, Any]:
        answer = self._client.post(f"{self._server.listening_address}/{path}", json=asked)
        found: dict[str, Any] = answer.raise_for_status().json()
        return found


@contextmanager
def llama_cpp(file: Path, context: int = 512) -> Iterator[LlamaCpp]:
    """llama.cpp with a file loaded, until the block ends."""
    running = LlamaCpp(file, context)
    try:
        yield running
    finally:
        running.close()
