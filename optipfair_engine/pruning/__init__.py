"""Structured pruning: what to keep (importance), how much (sizes), the plan, and applying it.

Importing this package loads no torch (PEP 562), so that the command line reads the choices of
its options quickly.
"""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
