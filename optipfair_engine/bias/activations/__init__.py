"""Activations of prompts: where they are taken, how they are batched, and the guide's calls for one pair."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
