"""What is to go still works, and every answer to a request that uses it says until when."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import pytest

from api.openapi import render
from jobs.specs.deprecated import DEPRECATIONS
from tests.api.conftest import MODEL, Caller, FakeWorker

TEXT = {"texts": ["some text to measure on"]}
PAGE = Path(__file__).resolve().parents[3] / "docs" / "versioning.md"


ROW = re.compile(r"^\| `(\w+)` \| `(\w+)` \| ([\d-]+) \| ([\d-]+) \| `([\w.]+)` \|$", re.MULTILINE)


def evaluate(**spec: Any) -> dict[str, Any]:
    return {"kind": "evaluate", "spec": {"model": MODEL, **spec}}


OLD = evaluate(text=TEXT, max_length=64)


@pytest.mark.parametrize(
    "body",
    [OLD, {"kind": "pipeline", "spec": {"steps": [{"name": "look", **OLD}]}}],
    ids=["alone", "in a step"],
)
@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/jobs:validate"])
def test_a_deprecated_field_works_and_is_announced(
    caller: Caller, worker: FakeWorker, body: dict[str, Any], path: str
) -> None:
    answer = caller.post(path, json=body)
    assert answer.status_code in (200, 202), answer.text
    since = re.fullmatch(r"@(\d+)", answer.headers["Deprecation"])
    assert since is not None
    announced = datetime.fromtimestamp(int(since[1]), UTC)
    sunset = parsedate_to_datetime(answer.headers["Sunset"])
    assert sunset - announced >= timedelta(days=365)
    (told,) = [item for item in answer.json()["warnings"] if item["code"] == "deprecated"]
    assert "text.max_length" in told["message"] and f"{sunset:%Y-%m-%d}" in told["message"]
    if path == "/v1/jobs":
        spec = answer.json()["spec"]
        assert (spec["steps"][0]["spec"] if "steps" in spec else spec)["text"]["max_length"] == 64


def test_nothing_is_announced_to_whoever_does_not_use_it(caller: Caller, worker: FakeWorker) -> None:
    answer = caller.post("/v1/jobs", json=evaluate(text={**TEXT, "max_length": 64}))
    assert answer.status_code == 202
    assert not {"deprecation", "sunset"} & set(answer.headers)
    assert answer.json()["warnings"] == []


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (evaluate(text={**TEXT, "max_length": 32}, max_length=64), "which says 32"),
        (evaluate(timing=True, max_length=64), "is not given"),
    ],
    ids=["contradicts", "has no text"],
)
def test_it_is_never_left_aside(caller: Caller, worker: FakeWorker, body: dict[str, Any], said: str) -> None:
    answer = caller.post("/v1/jobs", json=body)
    assert answer.status_code == 422
    assert said in answer.text


def test_the_page_and_the_document_name_every_deprecated_field_and_no_other() -> None:
    rows = ROW.findall(PAGE.read_text())
    assert rows == [
        (item.kind, item.field, f"{item.since:%Y-%m-%d}", f"{item.sunset:%Y-%m-%d}", item.instead)
        for item in DEPRECATIONS
    ]
    schemas = json.loads(render())["components"]["schemas"]
    marked = {
        (name, field)
        for name, schema in schemas.items()
        for field, facts in schema.get("properties", {}).items()
        if facts.get("deprecated")
    }
    assert marked == {(f"{item.kind.capitalize()}Spec", item.field) for item in DEPRECATIONS}
