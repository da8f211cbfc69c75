"""What a worker tells the database of itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

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


def test_the_memory_of_a_container_is_its_limit(tmp_path: Path) -> None:
    limit, unbounded = tmp_path / "memory.max", tmp_path / "limit_in_bytes"
    unbounded.write_text("max\n")
    whole = machine_memory([unbounded, tmp_path / "none"])
    limit.write_text("1048576\n")
    assert machine_memory([limit, unbounded]) == 1048576 < whole
