"""The same as a command line: what a page shows can always be asked of the API."""

from __future__ import annotations

import json
import shlex
from typing import Any

KEY = '-H "Authorization: Bearer $OPTIPFAIR_KEY"'


def get(base: str, path: str) -> str:
    """A GET."""
    return f"curl -fsS {KEY} {shlex.quote(base.rstrip('/') + path)}"


def post(base: str, path: str, body: Any) -> str:
    """A POST of JSON."""
    text = json.dumps(body, indent=2, ensure_ascii=False)
    address = shlex.quote(base.rstrip("/") + path)
    return f"curl -fsS {address} {KEY} \\\n  --json {shlex.quote(text)}"


def resubmit(base: str, request: dict[str, Any]) -> str:
    """The command that creates the same job again."""
    return post(base, "/v1/jobs", request)
