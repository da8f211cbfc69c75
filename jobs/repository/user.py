"""What a user may do to a job that exists: cancel, retry, delete."""

from __future__ import annotations

from sqlalchemy import Connection, delete, select

from jobs import tables as t
from jobs.errors import ConflictError, NotFoundError
from jobs.repository.base import JOB_COLUMNS, Verbs, change, is_in, put_into_outbox, requeued
from jobs.repository.ending import finish
from jobs.repository.purging import unreferenced
from jobs.rows import Job, job_from_row
from jobs.states import RETRYABLE, TERMINAL, State


class UserVerbs(Verbs):
    """The user's transitions."""

    def cancel_job(self, job_id: str) -> Job:
        """Queued → cancelled, running → cancelling; already cancelling or cancelled: the job as it is.

        ConflictError (`job_ended`) if it ended otherwise. Race: against claim and completion the row
        decides; a job that completes first stays succeeded. Repeats are safe.
        """
        mine = t.jobs.c.id == job_id
        with self._write() as connection:
            job = finish(
                connection,
                (mine, is_in(State.QUEUED)),
                State.CANCELLED,
                retention_seconds=self.settings.retention_seconds,
            )
            if job is None:
                where = (mine, is_in(State.RUNNING))
                job = change(connection, where, "cancelling", {}, state=State.CANCELLING.value)
            if job is not None:
                self._audit(connection, "job.cancel", job.tenant, job_id)
            else:
                job = _get(connection, job_id)
                if job.state not in (State.CANCELLING, State.CANCELLED):
                    raise ConflictError(f"the job has {job.state.value}", code="job_ended")
            connection.execute(delete(t.outbox).where(t.outbox.c.job_id == job_id))
        return job

    def retry_job(self, job_id: str) -> Job:
        """failed, timed_out, cancelled, expired → queued; lost attempts count anew, attempt numbers go on.

        ConflictError (`job_not_retryable`) otherwise; so the second of two retries at once is refused.
        QuotaExceededError, QueueFullError: as for a new job.
        """
        with self._write() as connection:
            job = change(
                connection,
                (t.jobs.c.id == job_id, is_in(*RETRYABLE)),
                "retried",
                {},
                **requeued(),
                lost_attempts=0,
                started_at=None,
                finished_at=None,
                error_code=None,
                error_message=None,
                verdict=None,
                checks=None,
            )
            if job is None:
                state = _get(connection, job_id).state
                raise ConflictError(
                    f"a job that is {state.value} cannot be retried", code="job_not_retryable"
                )
            self._check_quotas(connection, job.tenant)
            self._audit(connection, "job.retry", job.tenant, job_id)
            put_into_outbox(connection, job_id)
        return job

    def delete_job(self, job_id: str) -> list[str]:
        """Forget an ended job; returns the storage folders that nothing refers to any more, for deletion.

        ConflictError (`job_not_ended`) while it goes on, NotFoundError if there is none. If the process
        dies before the files are deleted, they are orphans, and the purge finds them.
        """
        with self._write() as connection:
            storage = select(t.artifacts.c.storage).distinct().where(t.artifacts.c.job_id == job_id)
            folders = list(connection.execute(storage).scalars())
            ended = delete(t.jobs).where(t.jobs.c.id == job_id, is_in(*TERMINAL)).returning(t.jobs.c.tenant)
            tenant = connection.execute(ended).scalar_one_or_none()
            if tenant is None:
                state = _get(connection, job_id).state
                raise ConflictError(f"the job is {state.value}; cancel it first", code="job_not_ended")
            self._audit(connection, "job.delete", tenant, job_id)
            return unreferenced(connection, folders)


def _get(connection: Connection, job_id: str) -> Job:
    row = connection.execute(select(*JOB_COLUMNS).where(t.jobs.c.id == job_id)).first()
    if row is None:
        raise NotFoundError("no such job", code="job_not_found")
    return job_from_row(row)
