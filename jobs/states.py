"""The states of a job and of an attempt, and which change may follow which.

The contract, in prose:

* A job is born `queued`. Whoever claims it makes it `running` and gets a new attempt number.
  Attempt numbers only count up; the number is the fencing token of everything that attempt writes.
* `running` ends as `succeeded`, `failed` or `timed_out`, said by the attempt that holds the job;
  or it goes back to `queued`, when the attempt was lost (no heartbeat within the lease) or
  preempted (its worker shut down). A lost attempt counts in `lost_attempts`, a preempted one does not.
  A job whose lost attempts reach `max_attempts` is `failed` with the code `attempts_exhausted`.
* Cancelling a `queued` job ends it at once. Cancelling a `running` job makes it `cancelling`: the
  attempt still holds it, learns of the wish by its next heartbeat, stops and makes it `cancelled`.
  A result that arrives while `cancelling` is discarded; a worker lost while `cancelling` means `cancelled`.
* A `queued` job with a queue time limit that passes becomes `expired`.
* Terminal states do not change, except by `retry` (not from `succeeded`), which puts the job back into
  `queued` and starts `lost_attempts` anew. A retry never resets the attempt number.
"""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    """A job's state."""

    QUEUED = "queued"
    RUNNING = "running"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    CANCELLED = "cancelled"
    EXPIRED = "expired"

    @property
    def terminal(self) -> bool:
        """Whether nothing but a retry leaves this state."""
        return self in TERMINAL


class Outcome(StrEnum):
    """How an attempt stands or ended."""

    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    CANCELLED = "cancelled"
    LOST = "lost"
    PREEMPTED = "preempted"


TERMINAL = frozenset({State.SUCCEEDED, State.FAILED, State.TIMED_OUT, State.CANCELLED, State.EXPIRED})
HELD = frozenset({State.RUNNING, State.CANCELLING})
"""The states in which an attempt holds the job."""
ACTIVE = frozenset({State.QUEUED, *HELD})
RETRYABLE = TERMINAL - {State.SUCCEEDED}

TRANSITIONS: dict[State, frozenset[State]] = {
    State.QUEUED: frozenset({State.RUNNING, State.CANCELLED, State.EXPIRED, State.SUCCEEDED}),
    State.RUNNING: frozenset(
        {State.SUCCEEDED, State.FAILED, State.TIMED_OUT, State.CANCELLING, State.QUEUED}
    ),
    State.CANCELLING: frozenset({State.CANCELLED}),
    State.SUCCEEDED: frozenset(),
    State.FAILED: frozenset({State.QUEUED}),
    State.TIMED_OUT: frozenset({State.QUEUED}),
    State.CANCELLED: frozenset({State.QUEUED}),
    State.EXPIRED: frozenset({State.QUEUED}),
}
"""Which state may follow which: what the guards of the UPDATEs in `jobs.repository` add up to.

Each guard is written where its verb is; a test takes every verb to every state, and finds these changes and
no others. `queued → succeeded` happens only when an earlier result is reused.
"""
