"""One browser for the tests of this folder, and the app on a port."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI

from tests.api.conftest import Caller, FakeWorker
from tests.browser import log_in, watched_page
from tests.servers import free_port


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
    port = free_port()
    config = uvicorn.Config(app, port=port, log_level="error", access_log=False, timeout_graceful_shutdown=2)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    worker = FakeWorker(app.state.services)
    worker.beat()
    made = Site(app, f"http://127.0.0.1:{port}", Caller(app, make_key()), worker, chromium)
    yield made
    for context in chromium.contexts:
        context.close()
    app.state.services.notifier.closing = True
    server.should_exit = True
    thread.join(20)
