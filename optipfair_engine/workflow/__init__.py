"""What the ``optipfair`` command and the worker call: one function a kind of job, from folder to folder."""

from __future__ import annotations

from optipfair_engine.workflow.options import PruneOptions

__all__ = ["PruneOptions"]
