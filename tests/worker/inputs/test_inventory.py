"""What a worker offers: models with revisions that are hashed once, and problems with their codes."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from optipfair_engine import headers
from worker.inputs.inventory import Inventory


def write_model(folder: Path, data: bytes = b"\0" * 8, *, declared: int = 8) -> None:
    """A folder with one 2×1 float32 tensor; `declared` bytes in its header."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(
        json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]})
    )
    header = {"w": {"dtype": "F32", "shape": [declared // 4, 1], "data_offsets": [0, declared]}}
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)


@pytest.fixture
def inventory(tmp_path: Path) -> Inventory:
    for name in ("models", "calibration", "suites"):
        (tmp_path / name).mkdir()
    return Inventory(
        tmp_path / "models", tmp_path / "calibration", tmp_path / "suites", tmp_path / "work" / "models.json"
    )


def test_a_model_that_is_added_or_changed_is_seen_with_its_revision(inventory: Inventory) -> None:
    assert inventory.scan() == []
    write_model(inventory.models_dir / "tiny")
    (first,) = inventory.scan()
    assert first.name == "tiny" and first.problem is None
    assert first.revision == headers.model_revision(inventory.models_dir / "tiny")
    assert first.facts["parameters"] == 2
    write_model(inventory.models_dir / "tiny", b"\1" * 8)
    (second,) = inventory.scan()
    assert second.revision not in {None, first.revision}


def test_an_unchanged_model_is_hashed_once_even_across_restarts(
    inventory: Inventory, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_model(inventory.models_dir / "tiny")
    first = inventory.scan()
    monkeypatch.setattr("worker.inputs.inventory.describe_model", lambda *_: pytest.fail("hashed again"))
    assert inventory.scan() == first
    restarted = Inventory(
        inventory.models_dir, inventory.calibration_dir, inventory.suites_dir, inventory.cache_file
    )
    restarted.load()
    assert restarted.scan() == first


@pytest.mark.parametrize(("data", "code"), [(b"", "model_truncated"), (b"\0" * 4, "model_truncated")])
def test_a_truncated_model_is_reported_with_its_problem(inventory: Inventory, data: bytes, code: str) -> None:
    write_model(inventory.models_dir / "short", data)
    (model,) = inventory.scan()
    assert model.problem is not None and model.problem.code == code
    assert str(inventory.models_dir) not in model.problem.message


def bad_dtype(folder: Path) -> None:
    write_model(folder)
    text = json.dumps({"w": {"dtype": [], "shape": [2], "data_offsets": [0, 8]}}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + b"\0" * 8)


def bad_name(folder: Path) -> None:
    write_model(folder)
    Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.txt")).write_text("")


def link_in_a_circle(folder: Path) -> None:
    write_model(folder)
    (folder / "loop").symlink_to("loop")


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (bad_dtype, "model_header_invalid"),
        (bad_name, "model_unreadable"),
        (link_in_a_circle, "model_unreadable"),
    ],
)
def test_a_bad_file_is_the_problem_of_its_model_alone(
    inventory: Inventory, spoil: Callable[[Path], None], code: str
) -> None:
    write_model(inventory.models_dir / "good")
    spoil(inventory.models_dir / "bad")
    (inventory.models_dir / "loop").symlink_to("loop")
    for _ in range(2):  # the second time from what was kept
        bad, good = inventory.scan()
        assert bad.problem is not None and bad.problem.code == code
        bad.problem.message.encode()
        assert good.name == "good" and good.problem is None


def test_whatever_a_file_does_to_a_parser_the_other_models_go_on(
    inventory: Inventory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_folder: Path) -> None:
        raise TypeError("unforeseen")

    write_model(inventory.models_dir / "odd")
    monkeypatch.setattr(headers, "inspect_model_folder", fails)
    (model,) = inventory.scan()
    assert model.problem is not None and model.problem.code == "model_unreadable"


def test_a_damaged_cache_file_is_ignored(inventory: Inventory) -> None:
    inventory.cache_file.parent.mkdir()
    inventory.cache_file.write_text('{"tiny": 3}')
    inventory.load()
    write_model(inventory.models_dir / "tiny")
    assert [model.name for model in inventory.scan()] == ["tiny"]


def test_named_files_are_listed(inventory: Inventory) -> None:
    (inventory.calibration_dir / "books.txt").write_text("text")
    (inventory.suites_dir / "gender.json").write_text("[]")
    (inventory.suites_dir / ".hidden").write_text("[]")
    found = inventory.files()
    assert (found["calibration"], found["suites"]) == (["books.txt"], ["gender.json"])


def test_a_suite_of_the_catalogue_is_here_once_all_its_files_are(inventory: Inventory) -> None:
    assert "crows_pairs" not in inventory.files()["catalogue"]
    (inventory.suites_dir / "crows_pairs").mkdir()
    (inventory.suites_dir / "crows_pairs" / "crows_pairs_anonymized.csv").write_text("as published")
    assert "crows_pairs" in inventory.files()["catalogue"]


def test_what_suites_hold_is_told_and_read_again_only_when_a_file_changes(inventory: Inventory) -> None:
    crows = "sent_more,sent_less,stereo_antistereo,bias_type\na,b,stereo,race\nc,d,stereo,race\n"
    (inventory.suites_dir / "crows.csv").write_text(crows)
    (inventory.suites_dir / "stereo.json").write_text(
        '{"data": {"intrasentence": [1, 2], "intersentence": [3]}}'
    )
    (inventory.suites_dir / "pairs.jsonl").write_text('["a", "b"]\n["c", "d"]\n')
    (inventory.suites_dir / "notes.txt").write_text("not a suite")
    found = inventory.suites()
    assert found == {
        "crows.csv": {"kind": "crows_pairs", "items": 2},
        "pairs.jsonl": {"kind": "prompt_pairs", "items": 2},
        "stereo.json": {"kind": "stereoset", "items": 3},
    }
    assert inventory.suites()["crows.csv"] is found["crows.csv"]
    (inventory.suites_dir / "crows.csv").write_text(crows + "e,f,stereo,age\n")
    assert inventory.suites()["crows.csv"]["items"] == 3
