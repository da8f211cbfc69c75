"""What killed attempts left goes while a worker runs, not only when the next one starts."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from jobs.rows import Job
from worker import orphans
from worker.services import Services


def test_a_stage_that_was_too_young_at_the_start_goes_later(
    services: Services, new_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(orphans, "SHORTEST_PAUSE_SECONDS", 0.05)
    quick = replace(services, settings=services.settings.model_copy(update={"orphan_grace_seconds": 0.3}))
    left = services.store.stage(new_job().id, 1)
    orphans.clean_up(quick)
    assert left.is_dir()
    thread = threading.Thread(target=orphans.keep_clean, args=(quick,), daemon=True)
    thread.start()
    deadline = time.monotonic() + 10
    while left.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left.exists()
    services.stopping.set()
    thread.join(5)
    assert not thread.is_alive()
