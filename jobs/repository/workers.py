"""What workers say of themselves: admission and readiness know them only from here."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy import delete, select

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
        """The worker has shut down. Repeats are safe."""
        with self._write() as connection:
            connection.execute(delete(t.workers).where(t.workers.c.id == worker_id))

    def purge_workers(self, *, older_than_seconds: float = 24 * 3600) -> int:
        """Forget the workers that have been silent for long; returns how many."""
        with self._write() as connection:
            silent = t.workers.c.seen_at <= later(-older_than_seconds)
            return connection.execute(delete(t.workers).where(silent)).rowcount

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
