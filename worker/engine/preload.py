"""Imported once by the fork server, so that each attempt's engine process starts with torch already loaded.

Importing is all that may happen here: a process forked after torch was *used* (its thread pools started)
hangs. The server's children run code over files that others supplied, so what only the supervisor needs
(database, broker, object store) leaves the environment here.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import os

from worker.engine.server import secret_names

_MODULES = (
    "numpy",
    "safetensors.torch",
    "torch",
    "transformers",
    "transformers.modeling_utils",
    "transformers.models.auto.modeling_auto",
    "transformers.models.llama.modeling_llama",
    "transformers.models.auto.tokenization_auto",
    "optipfair_engine.errors",
    "optipfair_engine.workflow",
    "optipfair_engine.workflow.prune.checkpoint",
    "optipfair_engine.figures",
    "optipfair_engine.checkpoints.reload",
    "optipfair_engine.workflow.bias",
    "matplotlib.figure",
    "matplotlib.backends.backend_agg",
    "worker.engine.runners",
)


def scrub_environment() -> None:
    """Drop the service's settings and credentials from this process's environment."""
    for name in secret_names(os.environ):
        del os.environ[name]


def preload() -> None:
    """Import what every attempt needs; a missing optional part is the attempt's error to explain.

    A worker that has ended meanwhile needs nothing more.
    """
    worker = os.getppid()
    for name in _MODULES:
        if os.getppid() != worker:
            os._exit(0)
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


scrub_environment()
preload()
# The server has nothing to tidy up, and freeing all those modules takes seconds on a busy machine.
# Its children leave by os._exit anyway.
atexit.register(os._exit, 0)
