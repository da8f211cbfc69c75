"""Calibration: text and data loaders as batches, accumulators, and the runners that feed them.

Importing this package does not load torch (PEP 562): plans read what is said of a calibration without it.
"""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
