"""What the ``optipfair`` command and the worker call: one function a kind of job, from folder to folder.

Importing this package loads neither torch nor transformers (PEP 562): ``prune`` streams without them.
"""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
