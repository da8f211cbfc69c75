"""What attempts said, kept beside them: bounded by who writes it, and replaced as a whole."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select

from jobs import tables as t
from jobs.database import writing
from jobs.repository.reading import ReadingVerbs
from jobs.rows import AttemptLog, printable


class LogVerbs(ReadingVerbs):
    """Logs of attempts."""

    def put_log(self, job_id: str, attempt: int, lines: Sequence[str], dropped: int) -> None:
        """Keep an attempt's newest lines, in place of what was kept of it before.

        Not fenced: a replaced attempt may still say how it ended, in its own row. A repeat is safe. A job
        that was deleted meanwhile makes it IntegrityError.
        """
        text = printable("\n".join(lines))
        statement = self._insert(t.attempt_logs).values(
            job_id=job_id, number=attempt, dropped=dropped, text=text
        )
        replaced = statement.on_conflict_do_update(
            index_elements=["job_id", "number"], set_={"dropped": dropped, "text": text}
        )
        with writing(self.engine) as connection:
            connection.execute(replaced)

    def list_logs(self, job_id: str, attempt: int | None = None) -> list[AttemptLog]:
        """What each attempt of the job said, in order; or the one that is named alone."""
        wanted = [item for item in self.list_attempts(job_id) if attempt in (None, item.number)]
        logs = t.attempt_logs.c
        query = select(logs.number, logs.dropped, logs.text).where(logs.job_id == job_id)
        if attempt is not None:
            query = query.where(logs.number == attempt)
        with self._read() as connection:
            kept = {row.number: row for row in connection.execute(query)}
        found = []
        for item in wanted:
            row = kept.get(item.number)
            lines = row.text.split("\n") if row is not None and row.text else []
            found.append(AttemptLog(item, lines, 0 if row is None else row.dropped))
        return found
