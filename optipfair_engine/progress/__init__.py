"""How long-running engine calls say how far they are, and bars for people who call them from a notebook."""

from __future__ import annotations

from optipfair_engine.progress.reporter import Reporter, null_reporter

__all__ = ["Reporter", "null_reporter"]
