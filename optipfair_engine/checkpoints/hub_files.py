"""Which files of a hub repository are a model that may be loaded."""

from __future__ import annotations

from typing import Final

#: Weights without code, configuration, tokenizers and chat templates; never pickles or Python.
ALLOWED: Final = ("*.safetensors", "*.json", "*.model", "*.txt", "*.jinja", "*.tiktoken", "*.gguf")
#: Copies of the same weights for other programs.
FOREIGN: Final = ("onnx/*", "openvino/*", "coreml/*", "flax/*", "tf/*", "original/*")
