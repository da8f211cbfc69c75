"""How much memory a job may use here: what the machine has, or less if a control group bounds this worker."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

#: Version 2 and version 1 of control groups, as a container sees its own.
LIMIT_FILES = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def machine_memory(limit_files: Sequence[Path] = LIMIT_FILES) -> int:
    """Bytes of memory of this machine or container, swap not counted."""
    installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([installed, *(limit for limit in map(_limit, limit_files) if limit is not None)])


def _limit(file: Path) -> int | None:
    """The number in a limit file; None without one ("max", or no such file)."""
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None
