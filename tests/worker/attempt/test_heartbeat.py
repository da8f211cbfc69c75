"""The heartbeat's status tells an attempt whether it still holds its job."""

from __future__ import annotations

import threading
from collections.abc import Callable

from worker.attempt.heartbeat import CANCELLING, LOST, RUNNING, Heartbeat


def heartbeat(beat: Callable[[], str | None], watch: Callable[[], str | None], **times: float) -> Heartbeat:
    return Heartbeat(beat, watch, **{"interval": 0.02, "lease": 60.0, "watch_interval": 0.01, **times})


def wait_for(heart: Heartbeat, status: str) -> bool:
    done = threading.Event()

    def poll() -> None:
        while heart.status != status and not done.wait(0.005):
            pass
        done.set()

    thread = threading.Thread(target=poll, daemon=True)
    thread.start()
    thread.join(10)
    reached = heart.status == status
    done.set()
    return reached


def test_a_replaced_attempt_is_lost() -> None:
    answers = iter([RUNNING, None])
    with heartbeat(lambda: next(answers, None), lambda: RUNNING) as heart:
        assert wait_for(heart, LOST)


def test_a_cancel_is_seen_between_two_beats() -> None:
    with heartbeat(lambda: RUNNING, lambda: CANCELLING, interval=3600.0) as heart:
        assert wait_for(heart, CANCELLING)


def test_an_unreachable_database_loses_the_attempt_only_when_the_lease_is_over() -> None:
    failures: list[int] = []

    def fail() -> str:
        failures.append(1)
        raise ConnectionError("the database is away")

    with heartbeat(fail, fail, lease=0.2) as heart:
        assert wait_for(heart, LOST)
    assert len(failures) > 3


def test_a_database_that_comes_back_in_time_keeps_the_attempt() -> None:
    answers = iter([ConnectionError(), RUNNING, RUNNING])
    beaten = threading.Event()

    def beat() -> str:
        answer = next(answers, None)
        if isinstance(answer, Exception):
            raise answer
        if answer is None:
            beaten.set()
        return RUNNING

    with heartbeat(beat, lambda: RUNNING) as heart:
        assert beaten.wait(10)
        assert heart.status == RUNNING
