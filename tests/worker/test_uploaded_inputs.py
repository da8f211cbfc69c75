"""Where the engine's process finds what was uploaded."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from jobs.ids import new_id
from worker.attempt.task import upload_ids
from worker.inputs.places import InputNotFoundError, Inputs, Places


def test_an_upload_is_a_model_a_text_or_a_suite(tmp_path: Path) -> None:
    model, text = new_id(), new_id()
    for upload, name in ((model, "config.json"), (text, "texts.txt")):
        (tmp_path / upload).mkdir()
        (tmp_path / upload / name).write_text("one text\n")
    places = Places(
        models="",
        calibration="",
        suites="",
        hub_cache="",
        cache_bytes=0,
        allow_hub=False,
        uploads={upload: str(tmp_path / upload) for upload in (model, text)},
    )
    inputs = Inputs(places, ExitStack(), lambda *_: None)
    assert inputs.model({"source": "upload", "id": model}) == tmp_path / model
    assert inputs.texts({"source": "upload", "id": text, "texts": None}) == ["one text\n"]
    assert inputs.suite({"source": "upload", "id": text}) == tmp_path / text / "texts.txt"
    with pytest.raises(InputNotFoundError):
        inputs.model({"source": "upload", "id": new_id()})


def test_every_upload_of_a_spec_is_found() -> None:
    steps = [
        {"spec": {"model": {"source": "upload", "id": "a"}, "calibration": {"source": "upload", "id": "b"}}},
        {"spec": {"model": {"source": "local", "name": "x"}, "suite": {"source": "upload", "id": "c"}}},
    ]
    assert sorted(upload_ids({"steps": steps})) == ["a", "b", "c"]
