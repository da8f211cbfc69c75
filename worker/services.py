"""What the parts of a worker share, built once in its entry point and passed down."""

from __future__ import annotations

import multiprocessing.context
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from jobs.artifacts import ArtifactStore
from jobs.repository import Repository
from jobs.rows import Claim
from jobs.settings import Settings
from worker.activity import Activity
from worker.inputs.cache import FolderCache
from worker.inputs.inventory import Inventory
from worker.memory import machine_memory


@dataclass(frozen=True)
class Services:
    """Handles to the database, the artifact store, the engine's fork server and this machine's models."""

    worker_id: str
    settings: Settings
    repository: Repository
    store: ArtifactStore
    engines: multiprocessing.context.BaseContext
    inventory: Inventory
    job_cache: FolderCache
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    #: Set on SIGTERM: claim nothing more, give the running attempt its grace period.
    stopping: threading.Event = field(default_factory=threading.Event)
    #: The attempt under way, if there is one.
    running: list[Claim] = field(default_factory=list)
    activity: Activity = field(default_factory=Activity)
    #: Set while jobs wait for this worker and it takes none.
    stalled: threading.Event = field(default_factory=threading.Event)

    @property
    def hub_cache(self) -> FolderCache:
        """Hub snapshots. Engine processes fill it."""
        return FolderCache(self.settings.work_dir / "hub", self.settings.model_cache_bytes)

    @property
    def caches(self) -> tuple[FolderCache, ...]:
        """All that can be fetched again."""
        return self.job_cache, self.hub_cache

    @property
    def states_dir(self) -> Path:
        """What streamed jobs keep for an attempt that follows, by job id."""
        return self.settings.work_dir / "states"

    @property
    def code_version(self) -> str:
        """Marks results, and states, as made by the same code."""
        return self.settings.code_version or metadata.version("optipfair-service")

    @property
    def memory_bytes(self) -> int:
        """What one job may use of this machine's memory."""
        return self.settings.memory_bytes or machine_memory()

    @property
    def attempts_dir(self) -> Path:
        """Scratch folders of running attempts."""
        return self.settings.work_dir / "attempts"
