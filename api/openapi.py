"""`python -m api.openapi` writes docs/openapi.json; a test compares the two."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from api.main import make_routes
from api.observability import HttpMetrics

TARGET = Path(__file__).resolve().parent.parent / "docs" / "openapi.json"


def render() -> str:
    """The document, as it stands in docs/openapi.json; needs neither a database nor a data folder."""
    return json.dumps(make_routes(HttpMetrics()).openapi(), indent=2, ensure_ascii=False) + "\n"


def main() -> int:
    """Write docs/openapi.json, or another file; `--check` only compares."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("target", nargs="?", type=Path, default=TARGET)
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit 1 if the file is not current"
    )
    options = parser.parse_args()
    if not options.check:
        options.target.write_text(render(), encoding="utf-8")
    elif options.target.read_text(encoding="utf-8") != render():
        sys.stderr.write(f"{options.target.name} is not current: run make openapi\n")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
