"""What workers say of themselves: admission and readiness know them only from here."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from sqlalchemy import delete, select, update

from jobs import tables as t
from jobs.database import now_ms
from jobs.repository.base import Verbs, is_in, later
from jobs.rows import JsonObject, LocalModel, Worker, models_from_json, to_json
from jobs.states import State


class WorkerVerbs(Verbs):
    """Beats, and who is alive."""

    def worker_beat(
        self,
        worker_id: str,
        *,
        queues: Sequence[str],
        devices: Sequence[str],
        models: Sequence[LocalModel],
        files: Mapping[str, Sequence[str]],
        allow_hub: bool,
        code_version: str,
        draining: bool = False,
        stalled: bool = False,
        memory_bytes: int | None = None,
        suites: Mapping[str, JsonObject] | None = None,
    ) -> None:
        """The worker lives, and this is what it has.

        `devices`: "cpu", "cuda", "cuda:0" …; `files`: names by folder ("calibration", "suites");
        `memory_bytes`: how much one of its jobs may use; `stalled`: jobs wait for it, and it takes none;
        `suites`: what its suite files hold, by name.
        """
        values = {
            "queues": to_json(list(queues)),
            "devices": to_json(list(devices)),
            "models": to_json([asdict(model) for model in models]),
            "files": to_json({folder: list(names) for folder, names in files.items()}),
            "allow_hub": allow_hub,
            "code_version": code_version,
            "draining": draining,
            "stalled": stalled,
            "memory_bytes": memory_bytes,
            "suites": to_json(dict(suites or {})),
            "seen_at": now_ms(),
        }
        upsert = self._insert(t.workers).values(id=worker_id, started_at=now_ms(), **values)
        with self._write() as connection:
            connection.execute(upsert.on_conflict_do_update(index_elements=["id"], set_=values))

    def worker_gone(self, worker_id: str) -> None:
        """The worker has shut down. Repeats are safe.

        What one of a sleeping queue had is remembered.
        """
        c = t.workers.c
        with self._write() as connection:
            row = connection.execute(select(c.queues).where(c.id == worker_id)).one_or_none()
            if row is not None and self._sleeps(row.queues):
                connection.execute(update(t.workers).where(c.id == worker_id).values(draining=True))
            else:
                connection.execute(delete(t.workers).where(c.id == worker_id))

    def purge_workers(self, *, older_than_seconds: float = 24 * 3600) -> int:
        """Forget the workers that have been silent for long; returns how many.

        Of a sleeping queue those are kept that had something different, for as long as results are.
        """
        c = t.workers.c
        gone = (c.seen_at <= later(-older_than_seconds)) | c.draining.is_(True)
        silent = c.seen_at <= later(-min(older_than_seconds, self.settings.worker_timeout_seconds))
        old = c.seen_at <= later(-max(older_than_seconds, self.settings.retention_seconds))
        columns = (c.id, c.queues, c.devices, c.models, c.files, c.memory_bytes, old.label("old"))
        query = select(*columns).where(gone, silent).order_by(c.seen_at.desc(), c.id)
        with self._write() as connection:
            kept: set[tuple[Any, ...]] = set()
            unneeded = []
            for row in connection.execute(query):
                facts = tuple(row[1:-1])
                if row.old or facts in kept or not self._sleeps(row.queues):
                    unneeded.append(row.id)
                else:
                    kept.add(facts)
            if not unneeded:
                return 0
            return connection.execute(delete(t.workers).where(c.id.in_(unneeded))).rowcount

    def _sleeps(self, queues: str) -> bool:
        """Whether some of the queues (as JSON) are served by workers that are started on demand."""
        return not self.settings.asleep.isdisjoint(json.loads(queues))

    def sleeping_workers(self) -> list[Worker]:
        """What workers of sleeping queues had that are gone, the newest first: their like can be started.

        Each with those queues alone that sleep.
        """
        asleep = self.settings.asleep
        if not asleep:
            return []
        c = t.workers.c
        gone = c.draining.is_(True) | (c.seen_at <= later(-self.settings.worker_timeout_seconds))
        query = select(t.workers).where(gone).order_by(c.seen_at.desc(), c.id)
        with self._read() as connection:
            found = [_worker(row) for row in connection.execute(query).mappings()]
        mine = [(worker, [name for name in worker.queues if name in asleep]) for worker in found]
        return [replace(worker, queues=queues, asleep=True) for worker, queues in mine if queues]

    def known_workers(self) -> list[Worker]:
        """The live workers, and then those that can be started on demand."""
        return [*self.live_workers(), *self.sleeping_workers()]

    def live_workers(self) -> list[Worker]:
        """The workers that gave a beat within `worker_timeout_seconds` and are not shutting down."""
        c = t.workers.c
        query = select(t.workers).where(
            c.seen_at > later(-self.settings.worker_timeout_seconds), c.draining.is_(False)
        )
        with self._read() as connection:
            return [_worker(row) for row in connection.execute(query.order_by(c.id)).mappings()]

    def published_for(self, queues: Sequence[str], seconds: float) -> bool:
        """Whether a job of these queues waits whose message went out at least so many seconds ago."""
        c = t.jobs.c
        old = c.published_at <= later(-seconds)
        query = select(c.id).where(is_in(State.QUEUED), c.queue.in_(list(queues)), old).limit(1)
        with self._read() as connection:
            return connection.execute(query).first() is not None


def _worker(row: Mapping[Any, Any]) -> Worker:
    parsed = {name: json.loads(row[name]) for name in ("queues", "devices", "models", "files", "suites")}
    return Worker(**{**row, **parsed, "models": models_from_json(parsed["models"])})
