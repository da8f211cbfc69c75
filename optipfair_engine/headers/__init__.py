"""What a model folder says about itself: names, shapes, sizes, and what a prune of it will cost.

One of the two doors through which the service may reach into the engine: nothing here loads torch, NumPy or
transformers.
"""

from __future__ import annotations

from optipfair_engine.headers.errors import HeaderError
from optipfair_engine.headers.estimates import (
    Estimate,
    check_memory,
    estimate_prune,
    estimate_streamed,
    state_bytes,
)
from optipfair_engine.headers.folder import (
    ModelFacts,
    TensorInfo,
    holds_safetensors,
    inspect_model_folder,
    model_revision,
    pickled_message,
    read_config,
    read_headers,
    read_index,
    read_safetensors_header,
    weight_files,
)
from optipfair_engine.headers.reach import (
    lacks_experts,
    why_not_dynamic,
    why_speechless,
    width_type,
)
from optipfair_engine.headers.sizes import loaded_bytes, out_of_reach

__all__ = [
    "Estimate",
    "HeaderError",
    "ModelFacts",
    "TensorInfo",
    "check_memory",
    "estimate_prune",
    "estimate_streamed",
    "holds_safetensors",
    "inspect_model_folder",
    "lacks_experts",
    "loaded_bytes",
    "model_revision",
    "out_of_reach",
    "pickled_message",
    "read_config",
    "read_headers",
    "read_index",
    "read_safetensors_header",
    "state_bytes",
    "weight_files",
    "why_not_dynamic",
    "why_speechless",
    "width_type",
]
