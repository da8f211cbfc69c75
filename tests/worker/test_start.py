"""What a worker imports before it starts the process that imports torch for its engines."""

from __future__ import annotations

import subprocess
import sys

#: What takes long, and what the fork server's import must not wait for.
LATER = ("torch", "celery", "sqlalchemy", "structlog", "opentelemetry")


def test_the_fork_server_waits_for_little() -> None:
    code = f"import sys, worker.__main__; print([name for name in {LATER} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
