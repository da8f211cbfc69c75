"""``python -m tests.optipfair_engine.families.table`` writes docs/support.md from the suite's outcomes."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from tests.optipfair_engine.families.suite import Suite, render, support_page


def main() -> None:
    """Run every check and write the page."""
    torch.set_num_threads(1)  # many tiny products: a second thread only gets in the way
    with tempfile.TemporaryDirectory() as folder:
        support_page().write_text(render(Suite(Path(folder))), encoding="utf-8")
    print(f"wrote {support_page().name}")


if __name__ == "__main__":
    main()
