"""Model folders: reading, checking, writing.

Importing this package loads neither torch nor transformers (PEP 562): the streaming path starts without them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optipfair_engine.checkpoints.loading import check_finite, load_model, load_pruned
    from optipfair_engine.checkpoints.manifest import (
        MANIFEST_NAME,
        Manifest,
        SourceInfo,
        VerifyLevel,
        model_name,
    )
    from optipfair_engine.checkpoints.tokenizer import load_tokenizer
    from optipfair_engine.checkpoints.verify import ReloadCheck, ReloadRunner, verify_reload
    from optipfair_engine.checkpoints.writer import save_pruned

_EXPORTS = {
    "MANIFEST_NAME": "manifest",
    "Manifest": "manifest",
    "ReloadCheck": "verify",
    "ReloadRunner": "verify",
    "SourceInfo": "manifest",
    "VerifyLevel": "manifest",
    "check_finite": "loading",
    "load_model": "loading",
    "load_pruned": "loading",
    "load_tokenizer": "tokenizer",
    "model_name": "manifest",
    "save_pruned": "writer",
    "verify_reload": "verify",
}

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
    "model_name",
    "save_pruned",
    "verify_reload",
]


def __getattr__(name: str) -> Any:
    """Resolve a public name on first use."""
    if name in _EXPORTS:
        return getattr(importlib.import_module(f"{__name__}.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names."""
    return sorted(__all__)
