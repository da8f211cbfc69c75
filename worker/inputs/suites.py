"""What a suite file holds: its kind and how many items, for estimates and for gates; read once a change.

The supervisor must not load the engine, so this looks at the outer form alone; a job reads the items.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jobs.rows import JsonObject

LARGEST_FILE = 64_000_000


def suite_facts(path: Path) -> JsonObject | None:
    """`{"kind": "crows_pairs"|"stereoset"|"prompt_pairs", "items": n}`; None for what is no suite."""
    try:
        if path.stat().st_size > LARGEST_FILE:
            return None
        text = path.read_text(encoding="utf-8-sig")
        return _of_json(text) if text.lstrip()[:1] in ("{", "[") else _of_csv(text)
    except (OSError, ValueError, csv.Error):
        return None


def _of_csv(text: str) -> JsonObject | None:
    rows = csv.DictReader(io.StringIO(text, newline=""))
    if "sent_more" not in (name.strip() for name in rows.fieldnames or ()):
        return None
    return {"kind": "crows_pairs", "items": sum(1 for _ in rows)}


def _of_json(text: str) -> JsonObject | None:
    try:
        whole: Any = json.loads(text)
    except json.JSONDecodeError:  # one value a line
        whole = [json.loads(line) for line in text.split("\n") if line.strip()]
    if isinstance(whole, Mapping) and isinstance(whole.get("data"), Mapping):
        lists = (whole["data"].get(name, []) for name in ("intrasentence", "intersentence"))
        return {"kind": "stereoset", "items": sum(map(len, lists))}
    items = whole if isinstance(whole, list) else [whole]
    if len(items) == 2 and all(isinstance(item, str) for item in items):
        items = [items]
    flat = bool(items) and isinstance(items[0], Mapping) and "anti-stereotype" in items[0]
    return {"kind": "stereoset" if flat else "prompt_pairs", "items": len(items)}
