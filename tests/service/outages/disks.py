"""A service each of whose folders lies on a small disk of its own, which can be filled."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests import servers
from tests.service.harness import running
from tests.service.outages.scenes import MODEL, TIMES, Scene
from tests.tiny import write_tiny_llama, write_word_tokenizer

MIB = 1024 * 1024
#: What lies on a disk of its own, and its size: room for what some dozens of small jobs leave there.
DISKS = {
    "staging": 16 * MIB,
    "scratch": 16 * MIB,
    "database": 32 * MIB,
    "log": 8 * MIB,
    "broker": 32 * MIB,
    "postgres": 384 * MIB,
}
#: Where in the data folder they are; the database's is set.
_FOLDERS = {"staging": "artifacts", "scratch": "work", "database": "db", "log": "logs", "broker": "broker"}
_FILL_AGAIN_SECONDS = 0.2


class NeedsRootError(Exception):
    """A small file system can't be mounted here."""


@contextmanager
def mounted(disk: Path, size: int) -> Iterator[Path]:
    """A file system of so many bytes at that folder.

    Raises:
        NeedsRootError: this is not Linux, or we are not root.
    """
    disk.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=755", "tmpfs", str(disk)]
    if sys.platform != "linux" or os.geteuid() != 0 or subprocess.run(mount, check=False).returncode != 0:
        raise NeedsRootError("mounting a small tmpfs needs root")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def fill(filler: Path) -> None:
    """Write to that file until there is no room."""
    with filler.open("ab", buffering=0) as file, suppress(OSError):
        while True:
            file.write(b"x" * 4096)


@contextmanager
def full(disk: Path) -> Iterator[None]:
    """No room on that disk, for as long as the context lasts: what becomes free is filled again."""
    filler, over = disk / "filler", threading.Event()

    def keep_filling() -> None:
        fill(filler)
        while not over.wait(_FILL_AGAIN_SECONDS):
            fill(filler)

    fill(filler)
    thread = threading.Thread(target=keep_filling, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        filler.unlink()


@dataclass(kw_only=True)
class SmallDisks(Scene):
    """The service and its disks; what a fault befalls is "disk", the fault is the name of one."""

    places: dict[str, Path]

    @contextmanager
    def away(self, what: str, fault: str) -> Iterator[None]:
        """That disk is full."""
        assert what == "disk"
        with full(self.places[fault]):
            yield


@contextmanager
def small_disks(home: Path, *, postgres: bool = False) -> Iterator[SmallDisks]:
    """Everything started and ready, gone at the end; with `postgres`, its disk is the only small one."""
    data_dir = home / "data"
    write_word_tokenizer(write_tiny_llama(data_dir / "models" / "tiny"))
    with ExitStack() as stack:
        if postgres:
            # not below the data folder: Postgres runs as a user that may not enter it
            there = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ofdisk-")))
            there.chmod(0o755)
            places = {"postgres": stack.enter_context(mounted(there / "disk", DISKS["postgres"]))}
            url = stack.enter_context(servers.postgres_server(places["postgres"])).url
        else:
            places = {
                name: stack.enter_context(mounted(data_dir / where, DISKS[name]))
                for name, where in _FOLDERS.items()
            }
            url = f"sqlite:///{places['database'] / 'service.db'}"
        service = stack.enter_context(running(data_dir, OPTIPFAIR_DATABASE_URL=url, **TIMES))
        # large enough not to fit into what a database has left of its last pages
        texts = {"texts": ["w3 " * 300] * 200, "max_length": 8, "num_samples": 8}
        spec = {"model": MODEL, "pruning_percentage": 25, "calibration": texts}
        made = SmallDisks(
            service,
            places=places,
            fair_ends=(("succeeded", None), ("failed", "storage_full")),
            posted={"kind": "prune", "spec": spec},
        )
        made.warm_up()
        yield made
