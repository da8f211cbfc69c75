"""The client: `OptipfairClient` for programs and notebooks, and the verbs of the command.

It needs httpx, rich and typer (the extra `client`), never what the service itself needs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from service.client.api import OptipfairClient
    from service.client.errors import ClientError, DownloadError, RefusedError, UnreachableError

# the command starts in a fraction of the time that httpx takes to be imported
__getattr__, __dir__, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "api": ["OptipfairClient"],
        "errors": ["ClientError", "DownloadError", "RefusedError", "UnreachableError"],
    },
)
__all__ = ["ClientError", "DownloadError", "OptipfairClient", "RefusedError", "UnreachableError"]
