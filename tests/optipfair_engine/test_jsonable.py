from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from optipfair_engine.jsonable import strict, write_json


def test_what_json_cannot_say_becomes_null_and_other_libraries_numbers_pythons() -> None:
    raw = {
        "a": float("nan"),
        "b": np.float32(0.5),
        "c": {1: (float("inf"), True)},
        "d": None,
        "e": torch.tensor(2),
    }
    assert strict(raw) == {"a": None, "b": 0.5, "c": {"1": [None, True]}, "d": None, "e": 2}
    assert strict([np.float64("nan"), np.int64(3), "é"]) == [None, 3, "é"]


def test_what_is_written_is_what_is_returned(tmp_path: Path) -> None:
    written = write_json(
        tmp_path / "new" / "metrics.json", {"share": np.float64(0.25), "words": ["é", "\ud83d"]}
    )
    assert json.loads((tmp_path / "new" / "metrics.json").read_text(encoding="utf-8")) == written
