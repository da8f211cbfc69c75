"""Removes what killed attempts left on this machine: scratch folders, and folders that were staged."""

from __future__ import annotations

import re
import shutil
import time
from pathlib import Path

from jobs.artifacts import remove_staged_orphans
from worker.attempt.states import remove_ended
from worker.log import logger
from worker.services import Services

#: A round may list a large folder.
SHORTEST_PAUSE_SECONDS = 60.0
#: How often jobs are looked for that have ended and left a state here, which may be large.
STATES_PAUSE_SECONDS = 30.0
_SCRATCH = re.compile(r"([0-9a-f-]{36})-(\d+)")


def keep_clean(services: Services) -> None:
    """Clean up now, and again whenever the grace of orphans has passed, until this worker stops.

    Not at the start alone: the stage folder of a worker that was just killed is too young then.
    """
    pause = max(SHORTEST_PAUSE_SECONDS, services.settings.orphan_grace_seconds)
    due = time.monotonic()
    while not services.stopping.is_set():
        if time.monotonic() >= due:
            clean_up(services)
            due = time.monotonic() + pause
        drop_states(services)
        services.stopping.wait(min(pause, STATES_PAUSE_SECONDS))


def drop_states(services: Services) -> None:
    """Remove the states of jobs that ended elsewhere, or while nobody worked on them."""
    try:
        removed = remove_ended(services)
    except Exception:
        logger.warning("states.not_removed", exc_info=True)
        return
    if removed:
        logger.info("states.removed", count=removed)


def clean_up(services: Services) -> None:
    """One round; if the database is away, the next one does it."""
    try:
        removed = remove_scratch(services)
        grace = services.settings.orphan_grace_seconds
        stored = remove_staged_orphans(services.repository, services.store, grace_seconds=grace)
    except Exception:
        logger.warning("orphans.not_removed", exc_info=True)
        return
    for cache in services.caches:
        cache.remove_stale()
    if removed or stored:
        logger.info("orphans.removed", scratch=removed, stored=stored)


def remove_scratch(services: Services) -> int:
    """Remove scratch folders of attempts that no longer hold their job (other workers run theirs here)."""
    folders = dict(_scratch_folders(services.attempts_dir))
    live = services.repository.live_storage(list(folders))
    dead = [folder for key, folder in folders.items() if key not in live]
    for folder in dead:
        shutil.rmtree(folder, ignore_errors=True)
    return len(dead)


def _scratch_folders(root: Path) -> list[tuple[tuple[str, int], Path]]:
    if not root.is_dir():
        return []
    found = [(_SCRATCH.fullmatch(path.name), path) for path in root.iterdir()]
    return [((match[1], int(match[2])), path) for match, path in found if match]
