"""The ``optipfair`` command: ``app`` puts it together, and each command has a module."""

from __future__ import annotations

from optipfair_engine.cli.app import app, main

__all__ = ["app", "main"]
