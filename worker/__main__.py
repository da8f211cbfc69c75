"""`python -m worker`: one worker process, told its settings by its parent or by `OPTIPFAIR_*` variables.

The fork server is started before all else is imported: it takes longest, on another core. This module stays
small on purpose: multiprocessing does not import a `__main__.py` again in engine processes.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from jobs.handover import FROM_STDIN, settings_of_process
from worker.engine.server import make_context, start_server, thread_environment


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a worker until SIGTERM; the exit code is Celery's."""
    parser = argparse.ArgumentParser(prog="python -m worker", description="one worker of optipfair-service")
    parser.add_argument(FROM_STDIN, action="store_true", help="settings as JSON on standard input")
    parser.add_argument("--once", type=float, metavar="SECONDS", help="one job, waited for so long; then end")
    given = parser.parse_args(arguments)
    settings = settings_of_process(given.settings_from_stdin)
    # The fork server and the engines inherit these.
    os.environ.update(thread_environment(os.cpu_count(), 1, settings.threads))
    engines = make_context()
    start_server()

    from worker.entry import run

    return run(settings, engines, once=given.once)


if __name__ == "__main__":
    sys.exit(main())
