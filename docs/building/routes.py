"""The list of routes, from the OpenAPI document that the service gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

DOCUMENT = Path(__file__).resolve().parents[1] / "openapi.json"


def routes_page() -> str:
    """Markdown: a table of routes for each tag."""
    tables: dict[str, list[str]] = {}
    for path, methods in json.loads(DOCUMENT.read_text(encoding="utf-8"))["paths"].items():
        for method, said in methods.items():
            tables.setdefault((said.get("tags") or ["other"])[0], []).append(_row(method, path, said))
    head = "| route | what it does |\n|---|---|\n"
    return (
        "\n\n".join(f"## {tag.capitalize()}\n\n{head}" + "\n".join(rows) for tag, rows in tables.items())
        + "\n"
    )


def _row(method: str, path: str, said: dict[str, Any]) -> str:
    words = " ".join(said.get("description", "").split()).replace("|", "\\|").replace("*", "\\*")
    return f"| `{method.upper()} {path}` | {words} |"
