"""What a worker offers: models with revisions that are hashed once, and problems with their codes."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from optipfair_engine import headers
from worker.inventory import Inventory


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
    monkeypatch.setattr("worker.inventory.describe_model", lambda *_: pytest.fail("hashed again"))
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
    assert inventory.files() == {"calibration": ["books.txt"], "suites": ["gender.json"]}
