"""The words of options: what may be said where one of several is to be chosen."""

from __future__ import annotations

from typing import Final, Literal

Preset = Literal["guide", "recommended", "fast", "best"]
PruningType = Literal["MLP_GLU", "MLP", "DEPTH", "ATTENTION", "EXPERTS"]
NeuronSelectionMethod = Literal["MAW", "PPM", "VOW", "PON", "L2", "CFSP", "OBS"]
TieBreak = Literal["lower_index", "topk"]
Allocation = Literal["uniform", "allocated", "searched"]
ExpansionDivisor = Literal[32, 64, 128, 256]
LayerSelectionMethod = Literal["last", "first", "custom", "importance", "greedy_perplexity"]
ExpertSelectionMethod = Literal["REAP", "FREQUENCY"]
AttentionUnit = Literal["kv_group", "query_head"]
Compensation = Literal["none", "least_squares"]
VerifyLevel = Literal["none", "structure", "logits"]
DType = Literal["auto", "float32", "bfloat16", "float16"]
Export = Literal["none", "gguf"]
GgufType = Literal["f16", "bf16", "q8_0"]
ComputeDtype = Literal["auto", "float32", "checkpoint"]
Execution = Literal["auto", "memory", "streamed"]

Visualization = Literal["mean_diff", "heatmap", "pca"]
FairnessBy = Literal["reaction", "effect"]
Patching = Literal["neurons", "heads", "layers"]
FigureFormat = Literal["png", "svg", "pdf"]

#: Multiples that matrix hardware likes, and the only ones that the guide allows.
EXPANSION_DIVISORS: Final = (32, 64, 128, 256)
