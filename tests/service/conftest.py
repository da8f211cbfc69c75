"""One service for the tests that leave it as it was, and a fresh one for those that do not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.tiny import write_tiny_llama

from .harness import Service, running


@pytest.fixture(scope="package")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A ready service with the model `tiny`, shared by all tests that are content with its settings.

    Their modules are of the group `service`, so that one process of pytest-xdist starts it, once.
    """
    data_dir = tmp_path_factory.mktemp("service") / "data"
    write_tiny_llama(data_dir / "models" / "tiny")
    with running(data_dir) as started:
        yield started


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., AbstractContextManager[Service]]:
    """Starts a service with the model `tiny` in a fresh folder."""
    write_tiny_llama(tmp_path / "data" / "models" / "tiny")
    return lambda *options, **environ: running(tmp_path / "data", *options, **environ)
