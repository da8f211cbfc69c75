"""Model folders: reading, checking, writing."""

from __future__ import annotations

from optipfair_engine.checkpoints.loading import check_finite, load_model, load_pruned
from optipfair_engine.checkpoints.manifest import MANIFEST_NAME, Manifest, SourceInfo, VerifyLevel
from optipfair_engine.checkpoints.tokenizer import load_tokenizer
from optipfair_engine.checkpoints.verify import ReloadCheck, ReloadRunner, verify_reload
from optipfair_engine.checkpoints.writer import save_pruned

__all__ = [
    "MANIFEST_NAME",
    "Manifest",
    "ReloadCheck",
    "ReloadRunner",
    "SourceInfo",
    "VerifyLevel",
    "check_finite",
    "load_model",
    "load_pruned",
    "load_tokenizer",
    "save_pruned",
    "verify_reload",
]
