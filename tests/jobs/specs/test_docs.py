"""The job bodies in the guide to HTTP are ones that the service takes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from jobs.specs import KINDS, parse_request
from jobs.specs.metrics import known_metrics

GUIDE = Path(__file__).resolve().parents[3] / "docs" / "http.md"
BLOCK = re.compile(r"^```json\n(.*?)^```$|<<'JSON'\n(.*?)^JSON$", re.MULTILINE | re.DOTALL)


def test_every_body_in_the_guide_is_accepted_and_every_kind_is_there() -> None:
    found: list[Any] = [json.loads(one or other) for one, other in BLOCK.findall(GUIDE.read_text())]
    bodies = [body for body in found if not str(body.get("type")).startswith("urn:optipfair:problem:")]
    assert {parse_request(body).kind for body in bodies} == set(KINDS)
    assert len(bodies) == len(KINDS) + 1  # the walk at the beginning prunes, too


def test_the_guide_lists_every_metric_that_a_gate_may_name() -> None:
    section = GUIDE.read_text().partition("## Gates and the verdict")[2].partition("\n## ")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", section, re.MULTILINE))
    assert set(rows) == set(KINDS)
    for kind in set(KINDS) - {"pipeline"}:
        assert set(re.findall(r"`(\w+)`", rows[kind])) == known_metrics(kind)
