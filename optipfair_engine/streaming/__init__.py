"""Pruning from checkpoint to checkpoint, tensor by tensor: no model is ever built from the weights.

The source is mapped into memory, never read as a whole; the output is written by offsets, hashed while it
is written. What stays in private memory is a few buffers of fixed size, whatever the size of the model.
Importing this package loads neither torch nor transformers, whose imports take longer than pruning a
checkpoint of some gigabytes. Torch comes with the first score that needs it. Most families' data tell which
tensors a config means (``told``); for the others, and for plans that change more than sizes, transformers
runs beside the copying.

Tensors get their roles from their names alone (``layout``); the family's data, or a model of meta tensors
built from the config (``structure``), say whether they were right. Where a checkpoint's names are not the
model's own, ``UnsupportedModelError`` says so, and the in-memory path does it instead.
"""

from __future__ import annotations

from optipfair_engine.streaming.apply import StreamedCheckpoint, apply_plan_to_checkpoint
from optipfair_engine.streaming.layout import CheckpointLayout
from optipfair_engine.streaming.source import CheckpointSource

__all__ = [
    "CheckpointLayout",
    "CheckpointSource",
    "StreamedCheckpoint",
    "apply_plan_to_checkpoint",
]
