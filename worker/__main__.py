"""`python -m worker`: one worker process, told its settings by its parent or by `OPTIPFAIR_*` variables.

This module stays small on purpose: multiprocessing does not import a `__main__.py` again in engine processes.
"""

from __future__ import annotations

import sys

from worker.entry import main

if __name__ == "__main__":
    sys.exit(main())
