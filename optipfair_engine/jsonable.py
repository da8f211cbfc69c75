"""Strict JSON: what scripts in any language can read."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def strict(value: Any) -> Any:
    """``value`` as strict JSON: NaN and infinity, which JSON lacks, become ``null``; keys become strings.

    Numbers of numpy and torch become Python's.
    """
    if isinstance(value, Mapping):
        return {str(key): strict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [strict(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write_json(path: Path, data: Mapping[str, Any]) -> dict[str, Any]:
    """Write strict JSON, making the folder where needed; returns what was written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    clean: dict[str, Any] = strict(data)
    text = json.dumps(clean, indent=2, ensure_ascii=False, allow_nan=False)
    # half of a surrogate pair has no UTF-8; JSON can escape it
    path.write_bytes((text + "\n").encode("utf-8", "backslashreplace"))
    return clean
