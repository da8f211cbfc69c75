"""Where the files of jobs live, on a local disk or in S3, behind one protocol."""

from __future__ import annotations

from jobs.artifacts.archive import ArchivePlan
from jobs.artifacts.base import ArtifactStore, Interrupt, KeptSteps, Sealed, StoredFolder, check_name
from jobs.artifacts.factory import make_store
from jobs.artifacts.orphans import remove_if_dead, remove_orphans, remove_staged_orphans
from jobs.artifacts.sealing import full_disk_is_named

__all__ = [
    "ArchivePlan",
    "ArtifactStore",
    "Interrupt",
    "KeptSteps",
    "Sealed",
    "StoredFolder",
    "check_name",
    "full_disk_is_named",
    "make_store",
    "remove_if_dead",
    "remove_orphans",
    "remove_staged_orphans",
]
