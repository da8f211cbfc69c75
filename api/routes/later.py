"""Routes that are imported when a request first comes for one of their paths.

A process answers for its readiness and its jobs at once; what one page or one kind of resource alone needs
is imported behind that.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Iterable

from fastapi import APIRouter
from starlette.routing import BaseRoute, Match
from starlette.types import Scope


class LaterRouter(APIRouter):
    """The `router` of a module below `api.routes`, without its routes until one of them is asked for.

    Args:
        module: the module's name.
        paths: every path of its routes is one of these, or lies below one.
    """

    def __init__(self, module: str, *paths: str) -> None:
        super().__init__()
        self._module, self._paths = module, paths
        self._lock, self._loaded = threading.Lock(), False

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """As of any router, but for paths of others without a look at the routes."""
        if not self._loaded:
            path = scope["path"].removeprefix(scope.get("root_path", ""))
            if not any(path == own or path.startswith(f"{own}/") for own in self._paths):
                return Match.NONE, {}
            self.load()
        return super().matches(scope)

    def load(self) -> None:
        """Import the routes, once."""
        with self._lock:
            if not self._loaded:
                self.include_router(importlib.import_module(f"api.routes.{self._module}").router)
                self._loaded = True


def load_all(routes: Iterable[BaseRoute]) -> None:
    """Import the routes of every such router among those that an app has included."""
    for route in routes:
        router = getattr(route, "original_router", None)
        if isinstance(router, LaterRouter):
            router.load()
