"""How an attempt can end, as its supervisor sees it; each becomes one verb of the repository."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias


@dataclass(frozen=True)
class Finished:
    """The engine did its work; its files wait to be published."""

    metrics: dict[str, Any]


@dataclass(frozen=True)
class Failed:
    """The job can't succeed as asked: a user's error, never tried again."""

    code: str
    message: str


@dataclass(frozen=True)
class Lost:
    """The machine failed, not the job: another attempt may succeed."""

    code: str
    message: str


@dataclass(frozen=True)
class TimedOut:
    """The job's time limit passed."""

    seconds: int


@dataclass(frozen=True)
class Cancelled:
    """The user asked to stop."""


@dataclass(frozen=True)
class Preempted:
    """This worker is shutting down."""


@dataclass(frozen=True)
class Replaced:
    """Another attempt has the job: this one writes nothing more."""


Outcome: TypeAlias = Finished | Failed | Lost | TimedOut | Cancelled | Preempted | Replaced


_TOLD: dict[type, str] = {
    Finished: "the engine has finished; its files are hashed and published",
    Cancelled: "the job was cancelled",
    Preempted: "the worker is shutting down: the job goes back into the queue",
    Replaced: "another attempt has the job",
}


def told(outcome: Outcome) -> str:
    """The outcome as a line of the attempt's log; errors by their code, since messages may quote prompts."""
    match outcome:
        case Failed(code, _):
            return f"the attempt failed: {code}"
        case Lost(code, _):
            return f"the attempt was lost: {code}"
        case TimedOut(seconds):
            return f"the job did not end within its {seconds} seconds"
        case _:
            return _TOLD[type(outcome)]


def resumed(found: Mapping[str, Any]) -> str:
    """What an attempt uses of an earlier one, as a line of its log."""
    if "finished_steps" in found:
        return f"an earlier attempt's steps are used: {', '.join(found['finished_steps'])}"
    return f"an earlier attempt's state is used: layer {found.get('layer')} is the next"


def of_exit(exitcode: int) -> Lost:
    """What an engine process that ended without a word means.

    Signal 9 is how Linux ends a process when memory runs out (and how an operator does): not the user's
    error, and not certain to repeat. 255 is multiprocessing's word for a fork server that died.
    """
    if exitcode == -9:
        return Lost(
            "engine_killed", "the engine process was killed by signal 9, most often because memory ran out"
        )
    if exitcode < 0:
        return Lost("engine_crashed", f"the engine process ended by signal {-exitcode}")
    return Lost("engine_crashed", f"the engine process ended with exit code {exitcode} and no result")
