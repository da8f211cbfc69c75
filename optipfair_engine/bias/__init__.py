"""How a model treats prompts that differ in a protected attribute: metrics, figures, statistics, behaviour.

Importing this package loads neither torch nor matplotlib: the names in ``__init__.pyi`` are resolved on first
use, so that the processes that only draw stay small.
"""

from __future__ import annotations

import lazy_loader

_resolve, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> object:
    """Resolve a public name on first use.

    Raises:
        ImportError: it draws, and matplotlib is not installed.
    """
    try:
        return _resolve(name)
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        raise ImportError(f"{name} draws figures: pip install 'optipfair-service[viz]'") from error
