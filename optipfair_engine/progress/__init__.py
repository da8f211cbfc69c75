"""How long-running engine calls say how far they are, and bars for people who call them from a notebook."""

from __future__ import annotations

from optipfair_engine.progress.reporter import Announcer, Reporter, null_announcer, null_reporter

__all__ = ["Announcer", "Reporter", "null_announcer", "null_reporter"]
