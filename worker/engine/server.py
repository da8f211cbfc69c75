"""The fork server that engine processes are forked from, and the environment that they get."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from collections.abc import Iterable
from multiprocessing import forkserver

SECRET_PREFIXES = ("OPTIPFAIR_", "AWS_", "PG", "REDIS", "CELERY_", "OTEL_")
_starting = threading.Lock()


def make_context() -> multiprocessing.context.BaseContext:
    """The start method of engine processes: a preloaded fork server; spawn on macOS."""
    if sys.platform == "darwin":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["worker.engine.preload"])
    return context


def secret_names(environ: Iterable[str]) -> list[str]:
    """The variables that configure the service or hold a credential: no engine process gets them."""
    return [name for name in environ if name.startswith(SECRET_PREFIXES)]


def start_server() -> None:
    """Start the fork server if it does not run, with an environment without secrets.

    They are left out at its start, not deleted in it: /proc shows what a process was started with. Other
    threads miss them for that moment; what they need they have read before, or try again.
    """
    if sys.platform == "darwin":
        return
    with _starting:
        kept = {name: os.environ.pop(name) for name in secret_names(list(os.environ))}
        try:
            forkserver.ensure_running()
        finally:
            os.environ.update(kept)


def thread_environment(cores: int | None, processes: int, threads: int | None) -> dict[str, str]:
    """OpenMP's variables for one of `processes` concurrent engine processes.

    Two OpenMP threads that spin on a busy machine make small matrix products 10 to 200 times slower, so the
    cores are divided and waiting threads sleep.
    """
    count = threads or max(1, (cores or 1) // max(1, processes))
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return {
        **dict.fromkeys(names, str(count)),
        "OMP_WAIT_POLICY": "PASSIVE",
        "TOKENIZERS_PARALLELISM": "false",
    }
