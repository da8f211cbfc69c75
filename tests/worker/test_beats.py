"""What a worker tells the database of itself."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from worker import beats as beats_module
from worker.beats import ALIVE_FILE, Beats
from worker.memory import machine_memory
from worker.services import Services


def reported(services: Services) -> int | None:
    beats = Beats(services, ["cpu"], "1")
    beats._beat()
    (worker,) = services.repository.live_workers()
    return worker.memory_bytes


def test_a_worker_says_how_much_memory_a_job_may_use(services: Services) -> None:
    assert reported(services) == machine_memory() > 0
    settings = services.settings.model_copy(update={"memory_bytes": 123})
    assert reported(replace(services, settings=settings)) == 123


def test_a_beat_leaves_a_trace_for_the_health_check_of_a_container(services: Services) -> None:
    alive = services.settings.work_dir / ALIVE_FILE
    alive.unlink(missing_ok=True)
    reported(services)
    assert alive.is_file()


def test_a_beat_that_could_not_be_written_is_tried_again_soon(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until one is, no job is admitted: the database was away for longer than a worker may be unheard of."""
    genuine, tried, written = services.repository.worker_beat, list[int](), threading.Event()

    def be_away_at_first(*args: Any, **kwargs: Any) -> None:
        tried.append(1)
        if len(tried) == 1:
            raise OperationalError("UPDATE", {}, ConnectionError("refused"))
        genuine(*args, **kwargs)
        written.set()

    monkeypatch.setattr(services.repository, "worker_beat", be_away_at_first)
    monkeypatch.setattr(beats_module, "RETRY_SECONDS", 0.01)
    rarely = {"heartbeat_seconds": 3600.0, "worker_timeout_seconds": 4 * 3600.0}
    settings = services.settings.model_copy(update=rarely)
    beats = Beats(replace(services, settings=settings), ["cpu"], "1")
    beats.start()
    try:
        assert written.wait(60)
    finally:
        beats.stop()


def test_the_memory_of_a_container_is_its_limit(tmp_path: Path) -> None:
    limit, unbounded = tmp_path / "memory.max", tmp_path / "limit_in_bytes"
    unbounded.write_text("max\n")
    whole = machine_memory([unbounded, tmp_path / "none"])
    limit.write_text("1048576\n")
    assert machine_memory([limit, unbounded]) == 1048576 < whole
