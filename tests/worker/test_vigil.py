"""When a worker counts as stalled, and what it does; `tests/service` breaks a real one's consumer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from kombu.exceptions import OperationalError

from jobs.queue import Publisher
from jobs.rows import Job
from worker.services import Services
from worker.vigil import EXIT_STALLED, Vigil


class Watched:
    """A vigil over services that count as idle, whose broker holds messages."""

    def __init__(self, services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
        self.settings = services.settings.model_copy(update={"stall_seconds": 0.001})
        self.services = replace(services, settings=self.settings)
        self.restarts, self.ends, self.messages = 0, [], 1
        monkeypatch.setattr(Publisher, "waiting", lambda *_: self.waiting())
        self.vigil = Vigil(self.services, self.restart, changed=lambda: None, end=self.ends.append)

    def waiting(self) -> int:
        if self.messages < 0:
            raise OperationalError("away")
        return self.messages

    def restart(self) -> None:
        self.restarts += 1

    def look(self, times: int) -> Watched:
        for _ in range(times):
            self.vigil.look()
        return self


@pytest.fixture
def watched(services: Services, monkeypatch: pytest.MonkeyPatch, new_job: Callable[..., Job]) -> Watched:
    """One that a published job waits for."""
    new_job()
    repository = services.repository
    repository.mark_published(repository.take_outbox())
    made = Watched(services, monkeypatch)
    while not repository.published_for(["cpu"], made.settings.stall_seconds):
        pass
    return made


def test_it_says_so_and_connects_anew_and_then_ends(watched: Watched) -> None:
    services = watched.services
    assert not watched.look(1).services.stalled.is_set()  # one message may be on its way
    assert watched.look(1).services.stalled.is_set()
    assert (watched.restarts, watched.ends) == (1, [])
    while not watched.ends:  # the new connection gets a moment
        watched.look(1)
    assert (watched.restarts, watched.ends) == (1, [EXIT_STALLED])
    assert services.repository.live_workers() == []


def test_work_clears_it(watched: Watched) -> None:
    watched.look(2)
    with watched.services.activity.working():
        watched.look(1)
        assert not watched.services.stalled.is_set()
        assert watched.services.activity.idle_seconds() == 0
    assert watched.ends == []


def test_it_never_ends_a_worker_that_has_just_taken_a_job(watched: Watched) -> None:
    watched.look(2)
    with watched.services.activity.working():
        watched.vigil._give_up()
    assert watched.ends == []


@pytest.mark.parametrize("messages", [0, -1], ids=["nothing waits in the broker", "the broker is away"])
def test_what_no_consumer_could_take_proves_nothing(watched: Watched, messages: int) -> None:
    watched.messages = messages
    assert watched.look(5).restarts == 0
    assert not watched.services.stalled.is_set()


def test_a_job_of_another_queue_proves_nothing(watched: Watched) -> None:
    assert not watched.services.repository.published_for(["gpu"], 0)


def test_the_beat_says_it_and_doctor_names_it(services: Services) -> None:
    from service.doctor import check_worker
    from worker.beats import Beats

    beats = Beats(services, ["cpu"], "1")
    beats._beat()
    assert check_worker(services.settings).well
    services.stalled.set()
    beats._beat()
    (worker,) = services.repository.live_workers()
    assert worker.stalled
    finding = check_worker(services.settings)
    assert not finding.well
    assert services.worker_id in finding.text
