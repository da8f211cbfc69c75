"""The worker's structured logger; how it prints is set up once, in the entry point."""

from __future__ import annotations

from jobs.logs import structlog

logger: structlog.stdlib.BoundLogger = structlog.get_logger("worker")
