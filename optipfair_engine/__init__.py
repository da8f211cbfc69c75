"""Structured pruning and bias analysis of language models.

Importing this package loads nothing heavy: the names in ``__init__.pyi`` are resolved on first use.
"""

from __future__ import annotations

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
