"""`optipfair-service doctor`: looks at everything a job needs, and says what to do about what is missing.

It makes no file and no folder: whoever asks what is wrong has not asked for a service to be set up.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from jobs.artifacts import make_store
from jobs.database import connect
from jobs.repository import Repository
from jobs.settings import Settings
from migrations import current, head
from worker.inputs.files import names_in

GIB = 1024**3
SHOWN_TENANTS = 3


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at; `advice` says what to do when it is not well."""

    subject: str
    well: bool
    text: str
    advice: str = ""

    def line(self) -> str:
        """The finding as one line for people."""
        advice = f" — {self.advice}" if self.advice and not self.well else ""
        return f"{'ok  ' if self.well else 'FAIL'}  {self.subject:<10} {self.text}{advice}"


def examine(settings: Settings) -> list[Finding]:
    """Run every check; none of them raises, each failure is a finding."""
    checks: list[tuple[str, Callable[[Settings], Finding], str]] = [
        ("database", check_database, "start the database, or check OPTIPFAIR_DATABASE_URL"),
        ("schema", check_schema, "run `optipfair-service migrate`"),
        ("broker", check_broker, "start `optipfair-service serve`, or check OPTIPFAIR_BROKER_URL"),
        ("artifacts", check_artifacts, "check OPTIPFAIR_ARTIFACTS_URL, its credentials and its permissions"),
        ("disk", check_disk, "free some space, or lower OPTIPFAIR_MIN_FREE_BYTES"),
        ("room", check_room, "delete jobs that are no longer needed, or empty the caches"),
        ("models", check_models, "put model folders (config.json, *.safetensors) there"),
        ("worker", check_worker, "start `optipfair-service worker`, and look into its log"),
    ]
    return [_guarded(subject, check, advice, settings) for subject, check, advice in checks]


def _guarded(subject: str, check: Callable[[Settings], Finding], advice: str, settings: Settings) -> Finding:
    try:
        return check(settings)
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        return Finding(subject, False, f"{type(error).__name__}: {reason}", advice)


def _repository(settings: Settings) -> Repository:
    if (missing := _missing_sqlite(settings)) is not None:
        raise FileNotFoundError(missing.text)
    return Repository(connect(settings.database_url), settings)


def check_database(settings: Settings) -> Finding:
    """The database answers."""
    missing = _missing_sqlite(settings)
    if missing is not None:
        return missing
    _repository(settings).ping()
    return Finding("database", True, settings.database_url.partition("://")[0] + " answers")


def _missing_sqlite(settings: Settings) -> Finding | None:
    # Opening a SQLite file that is not there would make an empty one: a check must not leave traces.
    prefix = "sqlite:///"
    if settings.database_url.startswith(prefix):
        path = Path(settings.database_url.removeprefix(prefix))
        if not path.is_file():
            return Finding("database", False, f"{path} does not exist", "run `optipfair-service migrate`")
    return None


def check_schema(settings: Settings) -> Finding:
    """The schema is the one that this code expects."""
    if _missing_sqlite(settings) is not None:
        return Finding("schema", False, "there is no database yet", "run `optipfair-service migrate`")
    found, newest = current(settings.database_url), head()
    advice = "run `optipfair-service migrate`"
    return Finding("schema", found == newest, f"at {found or 'nothing'}, newest is {newest}", advice)


def check_broker(settings: Settings) -> Finding:
    """The broker answers."""
    from jobs.queue import make_celery

    with make_celery(settings).connection_for_read() as connection:
        connection.ensure_connection(max_retries=0, timeout=3)
    return Finding("broker", True, "answers")


def check_artifacts(settings: Settings) -> Finding:
    """The artifact store can be used."""
    make_store(settings).check(secrets.token_hex(8))
    return Finding("artifacts", True, "the store can be written and read")


def check_disk(settings: Settings) -> Finding:
    """There is room for a job to start."""
    folder = next(path for path in (settings.work_dir, *settings.work_dir.parents) if path.exists())
    # results may lie on another disk than scratch and caches; a job needs room on both
    free = min(shutil.disk_usage(folder).free, make_store(settings).free_bytes())
    text = f"{free / GIB:.1f} GiB free, {settings.min_free_bytes / GIB:.1f} GiB are kept free"
    return Finding("disk", free > settings.min_free_bytes, text, "free some space")


def check_room(settings: Settings) -> Finding:
    """What takes room: each tenant's files, the largest first, and what this machine keeps besides."""
    kept = {} if _missing_sqlite(settings) is not None else _repository(settings).kept_bytes()
    by_size = sorted(kept.items(), key=lambda item: item[1], reverse=True)
    shown = [f"files of {tenant} {size / GIB:.2f} GiB" for tenant, size in by_size[:SHOWN_TENANTS]]
    rest = by_size[SHOWN_TENANTS:]
    if rest:
        shown.append(f"of {len(rest)} other tenants {sum(size for _, size in rest) / GIB:.2f} GiB")
    for title, folder in (("fetched from the hub", "hub"), ("fetched from earlier jobs", "jobs")):
        shown.append(f"{title} {_folder_bytes(settings.work_dir / folder) / GIB:.2f} GiB")
    limit = settings.max_artifact_bytes_per_tenant
    full = [tenant for tenant, size in kept.items() if limit is not None and size >= limit]
    advice = f"{', '.join(full)}: nothing more may be written (OPTIPFAIR_MAX_ARTIFACT_BYTES_PER_TENANT)"
    return Finding("room", not full, "; ".join(shown), advice)


def _folder_bytes(folder: Path) -> int:
    files = (Path(parent, name) for parent, _, names in os.walk(folder) for name in names)
    return sum(file.lstat().st_size for file in files)


def check_models(settings: Settings) -> Finding:
    """There is something to prune: local models, or the hub."""
    names = names_in(settings.models_dir, folders=True)
    advice = f"put model folders (config.json, *.safetensors) into {settings.models_dir}"
    text = f"{len(names)} local" + (", hub ids allowed" if settings.allow_hub else "")
    return Finding("models", bool(names) or settings.allow_hub, text, advice)


def check_worker(settings: Settings) -> Finding:
    """A worker has reported itself lately."""
    workers = _repository(settings).live_workers()
    queues = sorted({queue for worker in workers for queue in worker.queues})
    text = f"{len(workers)} live, queues {', '.join(queues)}" if workers else "no live worker"
    stalled = [worker.id for worker in workers if worker.stalled]
    if stalled:
        text = f"{len(stalled)} of {len(workers)} live take no jobs though some wait: {', '.join(stalled)}"
        advice = "it restarts itself within a minute; if it comes again, look into its log"
        return Finding("worker", False, text, advice)
    return Finding("worker", bool(workers), text, "start `optipfair-service worker`")
