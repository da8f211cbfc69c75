"""A short form of `make chaos`: some jobs, some violence, nothing lost and nothing published twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.outages.chaos import run
from benchmarks.outages.chaos_books import Plan

pytestmark = [pytest.mark.outage, pytest.mark.server, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.mark.parametrize("backend", ["sqlite", "postgres"])
def test_nothing_is_lost_and_nothing_published_twice(tmp_path: Path, backend: str) -> None:
    plan = Plan(jobs=9, lost_attempts=2, stale_attempts=1, once_jobs=0, end_seconds=600)
    report = run(backend, plan, seed=1, home=tmp_path)
    assert report.failures(plan) == [], f"{report.line()}\n{report.details()}"
    assert report.accepted == 9 + 1  # and the fresh job when all was calm
