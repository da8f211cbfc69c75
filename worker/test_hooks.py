"""Ways for tests to hold an attempt or make it die; off unless OPTIPFAIR_TEST_HOOKS=1.

A job asks for a hook by a label; without the variable such labels are labels and nothing else.

* `test.engine` = `die`: the engine kills itself with SIGKILL as if the machine had run out of memory.
* `test.engine` = `die-once`: the same, in the first attempt only.
* `test.engine` = `hold:SECONDS`: the engine waits before it begins; `hold-once:SECONDS`: in the first attempt
  only.
* `test.calibrate` = `hold:SECONDS`: the engine of the first attempt waits after the first layer of a
  calibration that goes layer by layer.
* `test.seal` = `hold:SECONDS`: the supervisor waits before it stores (uploads) the files.
* `test.complete` = `hold:SECONDS`: the supervisor waits before the completing transaction, heartbeats going
  on.
* `test.complete` = `stale:SECONDS`: as a stopped process would: no heartbeats, until the attempt has been
  replaced (or that many seconds passed), unnoticed until the completing transaction refuses it. Both in the
  first attempt only.
* `test.consumer` = `deaf`: after this job the consumer asks for no more messages, until it connects anew.
* `test.consumer` = `blocked`: after this job the consumer's event loop does nothing any more.
* `test.acknowledge` = `hold:SECONDS`: the worker says "hook.about_to_acknowledge" and waits before it tells
  the broker that it is done with the job, which has ended by then.
* `test.acknowledge` = `reject:SECONDS`: the same, but then it rejects the message.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from worker.consumer import ConsumerHandle
    from worker.services import Services

VARIABLE = "OPTIPFAIR_TEST_HOOKS"
_HOLD = re.compile(r"(hold|hold-once|stale|reject):(\d+(?:\.\d+)?)")


def enabled(environ: Mapping[str, str]) -> bool:
    """Whether this worker was started for tests."""
    return environ.get(VARIABLE) == "1"


def of_labels(labels: Mapping[str, str], attempt: int, environ: Mapping[str, str]) -> dict[str, str]:
    """The hooks that a job asks for in this attempt; none unless they are enabled."""
    if not enabled(environ):
        return {}
    hooks = {name.removeprefix("test."): text for name, text in labels.items() if name.startswith("test.")}
    if attempt > 1:
        hooks.pop("complete", None)
        hooks.pop("calibrate", None)
        if "-once" in hooks.get("engine", ""):
            del hooks["engine"]
    return hooks


def in_engine(hooks: object) -> None:
    """Carry out the `engine` hook, in the engine's process."""
    text = hooks.get("engine", "") if isinstance(hooks, Mapping) else ""
    if text in {"die", "die-once"}:
        os.kill(os.getpid(), signal.SIGKILL)
    kind, seconds = parse_hold(text)
    if kind in {"hold", "hold-once"}:
        time.sleep(seconds)


def after_progress(hooks: object, stage: str, done: int) -> None:
    """Carry out the `calibrate` hook, in the engine's process."""
    text = hooks.get("calibrate", "") if isinstance(hooks, Mapping) else ""
    kind, seconds = parse_hold(text)
    if kind == "hold" and stage == "calibrate" and done == 1:
        time.sleep(seconds)


def after_job(services: Services, job_id: str, consumer: ConsumerHandle) -> bool:
    """Carry out the hooks `consumer` and `acknowledge`, when the job has ended but for its message.

    Returns whether the message is to be rejected.
    """
    if not enabled(services.environ):
        return False
    kind = ""
    from worker.log import logger  # engines import this module, and log otherwise

    with suppress(Exception):  # the database may be away, or the job unknown
        job = services.repository.get_job(job_id)
        hooks = of_labels(job.labels, job.attempt, services.environ)
        match hooks.get("consumer"):
            case "deaf":
                consumer.deafen()
            case "blocked":
                consumer.block()
        kind, seconds = parse_hold(hooks.get("acknowledge", ""))
        if kind:
            logger.info("hook.about_to_acknowledge", job_id=job_id)
            time.sleep(seconds)
    return kind == "reject"


def parse_hold(text: str) -> tuple[str, float]:
    """`("hold", 5.0)` for `hold:5`; `("", 0.0)` for anything else."""
    match = _HOLD.fullmatch(text)
    return (match[1], float(match[2])) if match else ("", 0.0)


def wait_until_replaced(held: Callable[[], str | None], seconds: float) -> None:
    """Wait until `held` says None, as a worker that wakes up after its lease."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with suppress(Exception):  # the database may be restarting
            if held() is None:
                return
        time.sleep(0.2)
