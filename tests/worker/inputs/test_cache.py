"""Folders fetched from elsewhere: filled once, evicted when unused, never half there."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from worker.inputs.cache import FolderCache


def fill_with(size: int, calls: list[Path] | None = None):
    def fill(folder: Path) -> None:
        (folder / "weights").write_bytes(b"x" * size)
        if calls is not None:
            calls.append(folder)

    return fill


def test_concurrent_users_fill_once(tmp_path: Path) -> None:
    calls: list[Path] = []
    caches = [FolderCache(tmp_path, 1000) for _ in range(4)]
    barrier = threading.Barrier(4)

    def use(cache: FolderCache) -> None:
        barrier.wait()
        with cache.folder("model", fill_with(10, calls)) as folder:
            assert (folder / "weights").read_bytes() == b"x" * 10

    threads = [threading.Thread(target=use, args=(cache,)) for cache in caches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(calls) == 1


def test_a_failed_fill_leaves_nothing_and_can_be_repeated(tmp_path: Path) -> None:
    cache = FolderCache(tmp_path, 1000)

    def broken(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise OSError("connection lost")

    with pytest.raises(OSError, match="connection lost"), cache.folder("model", broken):
        pass
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]
    with cache.folder("model", fill_with(1)) as folder:
        assert [path.name for path in folder.iterdir()] == ["weights"]


def test_the_least_recently_used_goes_and_what_is_in_use_stays(tmp_path: Path) -> None:
    cache = FolderCache(tmp_path, 25)
    with cache.folder("old", fill_with(10)):
        with cache.folder("middle", fill_with(10)):
            pass
        os.utime(tmp_path / "old", (1, 1))  # the oldest, but held
        os.utime(tmp_path / "middle", (2, 2))
        with cache.folder("new", fill_with(10)):
            pass
        assert (tmp_path / "old").is_dir()
        assert not (tmp_path / "middle").exists()
        assert (tmp_path / "new").is_dir()


def test_an_entry_that_another_worker_evicts_meanwhile_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = FolderCache(tmp_path, 5)
    with cache.folder("mine", fill_with(10)):
        # listed a moment ago, gone by now
        monkeypatch.setattr(cache, "_entries", lambda: [tmp_path / "theirs", tmp_path / "mine"])
    assert not (tmp_path / "mine").exists()


def test_a_worker_that_is_killed_while_it_evicts_leaves_no_half_entry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = FolderCache(tmp_path, 5)
    monkeypatch.setattr("shutil.rmtree", lambda *_, **__: None)  # it comes no further
    with cache.folder("model", fill_with(10)):
        pass
    assert not (tmp_path / "model").exists()
    monkeypatch.undo()
    with cache.folder("model", fill_with(1)) as folder:
        assert (folder / "weights").read_bytes() == b"x"
    cache.remove_stale(older_than_seconds=-1)
    assert not [path for path in tmp_path.iterdir() if path.is_dir() and path.name != "model"]


def test_what_is_least_recently_used_makes_room_and_no_more(tmp_path: Path) -> None:
    cache = FolderCache(tmp_path, 1000)
    for age, name in enumerate(("old", "middle", "new")):
        with cache.folder(name, fill_with(10)):
            pass
        os.utime(tmp_path / name, (age, age))
    assert cache.make_room(lambda: not (tmp_path / "old").exists()) == 1
    with cache.folder("middle", fill_with(10)):  # held
        assert cache.make_room(lambda: False) == 1
    assert (tmp_path / "middle").is_dir() and not (tmp_path / "new").exists()


def test_a_disk_that_fills_during_a_fetch_is_freed_of_what_is_unused(tmp_path: Path) -> None:
    cache = FolderCache(tmp_path, 1000)
    with cache.folder("unused", fill_with(10)):
        pass

    def fill(folder: Path) -> None:
        if (tmp_path / "unused").exists():
            (folder / "half").write_text("half")
            raise OSError(errno.ENOSPC, "No space left on device")
        fill_with(10)(folder)

    with cache.folder("new", fill) as folder:
        assert [path.name for path in folder.iterdir()] == ["weights"]
