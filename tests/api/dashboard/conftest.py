"""One browser for the tests of this folder, and the app on a port."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from fastapi import FastAPI

from tests.api.conftest import Caller, FakeWorker
from tests.browser import log_in, watched_page
from tests.servers import served


@dataclass
class Site:
    """The app on a port, somebody with a key, and pages that write down what went wrong in them."""

    app: FastAPI
    address: str
    caller: Caller
    worker: FakeWorker
    chromium: Any
    complaints: list[str] = field(default_factory=list)

    def page(self, **options: Any) -> Any:
        """A page of a fresh visitor; errors and requests to other hosts are complaints."""
        return watched_page(self.chromium, self.address, self.complaints, **options)

    def log_in(self, page: Any, key: str | None = None) -> Any:
        """Fill in the log-in form."""
        return log_in(page, self.address, key or self.caller.key)


@pytest.fixture
def site(make_app: Callable[..., FastAPI], make_key: Callable[..., str], chromium: Any) -> Iterator[Site]:
    """The app on a port, with a live worker."""
    app = make_app()
    with served(app) as address:
        worker = FakeWorker(app.state.services)
        worker.beat()
        yield Site(app, address, Caller(app, make_key()), worker, chromium)
        for context in chromium.contexts:
            context.close()
