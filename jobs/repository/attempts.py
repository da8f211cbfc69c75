"""The worker's verbs: claim a job, keep it, say what happens, end it. All are fenced by the attempt."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from sqlalchemy import Connection, func, insert, not_, select, update

from jobs import tables as t
from jobs.artifacts import KeptSteps
from jobs.database import now_ms
from jobs.repository.base import (
    JOB_COLUMNS,
    Verbs,
    change,
    fenced,
    is_in,
    later,
    put_into_outbox,
    requeued,
    too_late,
)
from jobs.repository.ending import close_attempt, finish, keep, replace_artifacts
from jobs.repository.warnings import together
from jobs.repository.whole.totals import note
from jobs.rows import Artifact, Claim, Job, JsonObject, Progress, job_from_row, printable, to_json, warning
from jobs.states import Outcome, State


class AttemptVerbs(Verbs):
    """What a worker does to a job."""

    def claim(self, job_id: str, worker_id: str, *, message_of: str | None = None) -> Claim | None:
        """Queued → running with the next attempt number and a fresh lease; None: nothing to do here.

        `message_of` is the job whose message made the worker come. If that is another one, it has none left,
        so a message of the claimed job that is not sent yet is sent all the same: each that waits has one.

        Race: any number of workers may claim at once (a message can come twice); one conditional UPDATE
        lets exactly one win. A repeat by the same worker gets None, never the same attempt again. A job
        that goes back into the queue has been started in time: its queue deadline has no say any more.
        """
        free = (
            t.jobs.c.id == job_id,
            is_in(State.QUEUED),
            not_(too_late()),
        )
        with self._write() as connection:
            job = change(
                connection,
                free,
                "started",
                {"worker": worker_id},
                state=State.RUNNING.value,
                attempt=t.jobs.c.attempt + 1,
                worker_id=worker_id,
                lease_expires_at=later(self.settings.lease_seconds),
                started_at=func.coalesce(t.jobs.c.started_at, now_ms()),
            )
            if job is None:
                return None
            connection.execute(
                insert(t.attempts).values(
                    job_id=job_id,
                    number=job.attempt,
                    worker_id=worker_id,
                    outcome=Outcome.RUNNING.value,
                    started_at=now_ms(),
                )
            )
            if message_of in (None, job_id):
                connection.execute(t.outbox.delete().where(t.outbox.c.job_id == job_id))
            note(connection, "wait", job, job.queue, self._waited(job))
        return Claim(job=job, attempt=job.attempt)

    def _waited(self, job: Job) -> int:
        """How long a job that was claimed just now has waited since it was last put into the queue."""
        now = (job.lease_expires_at or 0) - round(self.settings.lease_seconds * 1000)
        return now - job.queued_at

    def heartbeat(self, job_id: str, attempt: int) -> State | None:
        """Extend the lease. RUNNING: go on; CANCELLING: stop, then mark_cancelled; None: replaced, stop.

        Race: against the sweeper the row decides; whoever comes second changes nothing. Repeats are safe.
        """
        statement = (
            update(t.jobs)
            .where(*fenced(job_id, attempt))
            .values(lease_expires_at=later(self.settings.lease_seconds))
            .returning(t.jobs.c.state)
        )
        with self._write() as connection:
            state = connection.execute(statement).scalar_one_or_none()
        return None if state is None else State(state)

    def add_event(
        self, job_id: str, attempt: int, type: str, data: JsonObject, *, progress: Progress | None = None
    ) -> bool:
        """Append an event and, if given, set the progress; it extends the lease too.

        False: the attempt has been replaced and nothing was written. A repeat appends a second event.
        """
        values: dict[str, object] = {"lease_expires_at": later(self.settings.lease_seconds)}
        if progress is not None:
            values |= {
                "progress_fraction": progress.fraction,
                "progress_stage": progress.stage,
                "progress_message": None if progress.message is None else printable(progress.message),
                "eta_seconds": progress.eta_seconds,
            }
        with self._write() as connection:
            return change(connection, fenced(job_id, attempt), type, data, **values) is not None

    def note_execution(self, job_id: str, attempt: int, execution: str, reason: str) -> bool:
        """Say how the job is carried out, and why; False if the attempt has been replaced. Safe to repeat."""
        data = {"execution": execution, "reason": printable(reason)}
        values = {"execution": execution, "execution_reason": data["reason"]}
        with self._write() as connection:
            return change(connection, fenced(job_id, attempt), "execution", data, **values) is not None

    def warn(self, job_id: str, attempt: int, code: str, message: str) -> bool:
        """Give the job a warning, with an event; False if the attempt has been replaced."""
        where = fenced(job_id, attempt)
        with self._write() as connection:
            found = connection.execute(select(t.jobs.c.warnings).where(*where).with_for_update())
            held = found.one_or_none()
            if held is None:
                return False
            new = warning(code, message)
            warnings = together(json.loads(held.warnings or "[]"), [new])
            return change(connection, where, "warning", new, warnings=to_json(warnings)) is not None

    def mark_succeeded(
        self,
        job_id: str,
        attempt: int,
        *,
        artifacts: Sequence[Artifact],
        archive: Artifact | None,
        metrics: JsonObject,
        publish: Callable[[], None],
        finished_at: int | None = None,
        reusable: bool = True,
    ) -> State | None:
        """Complete: SUCCEEDED; CANCELLED if it was cancelling (the result is discarded); None if replaced.

        `publish` makes the files visible; it runs inside the transaction after the fenced UPDATE, so a
        stale attempt never gets there, and the rows commit only if it worked. If the process dies between
        the two, the job is tried again and the files without rows are orphans. A repeat after a commit
        whose answer was lost returns SUCCEEDED again and changes nothing. `finished_at` (from `now()`) is
        given when the archive's hash, which covers that time, was computed before. Not `reusable`: the work
        was not quite that of the job's `reuse_key` (a model has changed), which goes.
        """
        with self._write() as connection:
            job = finish(
                connection,
                fenced(job_id, attempt, State.RUNNING),
                State.SUCCEEDED,
                retention_seconds=self.settings.retention_seconds,
                metrics=metrics,
                finished_at=finished_at,
                progress_fraction=1.0,
                progress_message=None,
                eta_seconds=0.0,
                kept=None,
                **({} if reusable else {"reuse_key": None}),
            )
            if job is None:
                return self._cancelled(connection, job_id, attempt) or _already(connection, job_id, attempt)
            replace_artifacts(connection, job, [*artifacts, *([] if archive is None else [archive])])
            publish()
        return State.SUCCEEDED

    def mark_failed(
        self, job_id: str, attempt: int, code: str, message: str, kept: KeptSteps | None = None
    ) -> State | None:
        """Running → failed, for what another try would not mend; cancelling → cancelled; None if replaced."""
        return self._end(job_id, attempt, State.FAILED, (code, message), kept)

    def mark_timed_out(
        self, job_id: str, attempt: int, message: str, kept: KeptSteps | None = None
    ) -> State | None:
        """Running → timed_out; cancelling → cancelled; None if replaced."""
        return self._end(job_id, attempt, State.TIMED_OUT, ("timed_out", message), kept)

    def mark_cancelled(self, job_id: str, attempt: int) -> State | None:
        """Cancelling → cancelled; None if replaced, or if nobody asked for it."""
        with self._write() as connection:
            return self._cancelled(connection, job_id, attempt)

    def mark_lost(
        self, job_id: str, attempt: int, code: str, message: str, kept: KeptSteps | None = None
    ) -> State | None:
        """An infrastructure failure (engine killed, memory): it counts, and the job is tried again.

        Returns the job's new state: QUEUED, FAILED (`attempts_exhausted`), CANCELLED (it was cancelling),
        or None if the attempt has been replaced. A repeat returns None.
        """
        with self._write() as connection:
            state = self._lose(connection, job_id, attempt, code, message)
            if kept is not None and state in (State.QUEUED, State.FAILED):
                job = _by_id(connection, job_id)
                keep(connection, job, kept, retention_seconds=self.settings.retention_seconds)
        return state

    def release_preempted(self, job_id: str, attempt: int, kept: KeptSteps | None = None) -> State | None:
        """Shutdown: running → queued without counting; cancelling → cancelled; None if replaced."""
        with self._write() as connection:
            cancelled = self._cancelled(connection, job_id, attempt)
            if cancelled is not None:
                return cancelled
            where = fenced(job_id, attempt, State.RUNNING)
            job = change(connection, where, "preempted", {}, **requeued())
            if job is None:
                return None
            close_attempt(connection, job, Outcome.PREEMPTED)
            put_into_outbox(connection, job_id)
            if kept is not None:
                keep(connection, job, kept, retention_seconds=self.settings.retention_seconds)
        return State.QUEUED

    def _end(
        self, job_id: str, attempt: int, target: State, error: tuple[str, str], kept: KeptSteps | None
    ) -> State | None:
        with self._write() as connection:
            job = finish(
                connection,
                fenced(job_id, attempt, State.RUNNING),
                target,
                retention_seconds=self.settings.retention_seconds,
                error=error,
            )
            if job is None:
                return self._cancelled(connection, job_id, attempt)
            if kept is not None:
                keep(connection, job, kept, retention_seconds=self.settings.retention_seconds)
        return job.state

    def _cancelled(self, connection: Connection, job_id: str, attempt: int) -> State | None:
        job = finish(
            connection,
            fenced(job_id, attempt, State.CANCELLING),
            State.CANCELLED,
            retention_seconds=self.settings.retention_seconds,
        )
        return None if job is None else job.state

    def _lose(
        self, connection: Connection, job_id: str, attempt: int, code: str, message: str
    ) -> State | None:
        """Give up an attempt within a transaction: shared by mark_lost and the sweeper."""
        cancelled = self._cancelled(connection, job_id, attempt)
        if cancelled is not None:
            return cancelled
        where = fenced(job_id, attempt, State.RUNNING)
        lost = t.jobs.c.lost_attempts + 1
        exhausted = finish(
            connection,
            (*where, lost >= t.jobs.c.max_attempts),
            State.FAILED,
            retention_seconds=self.settings.retention_seconds,
            error=("attempts_exhausted", f"every attempt was lost; the last one: {message} ({code})"),
            outcome=Outcome.LOST,
            lost_attempts=lost,
        )
        if exhausted is not None:
            return exhausted.state
        data = {"code": code, "message": message}
        job = change(connection, where, "lost", data, lost_attempts=lost, **requeued())
        if job is None:
            return None
        close_attempt(connection, job, Outcome.LOST, (code, message))
        put_into_outbox(connection, job_id)
        return State.QUEUED


def _by_id(connection: Connection, job_id: str) -> Job:
    return job_from_row(connection.execute(select(*JOB_COLUMNS).where(t.jobs.c.id == job_id)).one())


def _already(connection: Connection, job_id: str, attempt: int) -> State | None:
    """SUCCEEDED if this very attempt has completed the job before (its answer was lost on the way)."""
    done = select(t.jobs.c.id).where(*fenced(job_id, attempt, State.SUCCEEDED))
    return None if connection.execute(done).first() is None else State.SUCCEEDED
