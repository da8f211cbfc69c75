"""Names reach what is under their root and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from worker.inputs.files import OutsideRootError, names_in, resolve_named


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "models"
    (root / "good").mkdir(parents=True)
    (root / "good" / "config.json").write_text("{}")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "model.safetensors").write_text("secret")
    return root


@pytest.mark.parametrize("name", ["..", "../outside", "/etc", ".hidden", "", "a/b", "a\0b", "x" * 129])
def test_names_that_are_paths_are_refused(root: Path, name: str) -> None:
    with pytest.raises(OutsideRootError):
        resolve_named(root, name)


def test_a_link_that_leaves_the_root_is_refused_and_not_listed(root: Path) -> None:
    (root / "linked").symlink_to(root.parent / "outside")
    with pytest.raises(OutsideRootError):
        resolve_named(root, "linked")
    assert names_in(root, folders=True) == ["good"]


@pytest.mark.parametrize("target", ["model.safetensors", ""])
def test_a_link_inside_a_model_that_leaves_the_root_is_refused(root: Path, target: str) -> None:
    (root / "good" / "entry").symlink_to(root.parent / "outside" / target)
    with pytest.raises(OutsideRootError):
        resolve_named(root, "good")


def test_links_within_the_root_are_fine(root: Path) -> None:
    (root / "blobs").mkdir()
    (root / "blobs" / "abc").write_text("weights")
    (root / "good" / "model.safetensors").symlink_to("../blobs/abc")
    (root / "alias").symlink_to("good")
    assert resolve_named(root, "alias") == (root / "good").resolve()


def test_a_missing_name_is_not_found(root: Path) -> None:
    with pytest.raises(FileNotFoundError):
        resolve_named(root, "absent")
