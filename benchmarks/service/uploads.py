"""A large file through lines that are cut: what is sent again, and what memory the API takes for it.

    python -m benchmarks.service.uploads              # 2 GB, cut three times; then one with a wrong hash
    python -m benchmarks.service.uploads --gb 0.5

An HTTP process on this machine, the client of this package, and a proxy between them that resets the
connection at a quarter, a half and three quarters. Memory is what the API process alone holds (USS), looked
at every tenth of a second from the first byte to the end of the check. Exits with 1 if the file does not
arrive, if it starts anew after a cut, if memory passes 300 MB, or if a file with a wrong hash leaves anything
behind.
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks.service.alone import Api, alone
from service.client import OptipfairClient
from tests.proxy import Proxy, proxy

MB = 1000 * 1000
LINES = (b"some text of a line that is as long as every other, to the end\n" * 20_000)[: 1024 * 1024]
CUTS = (0.25, 0.5, 0.75)
MAX_PRIVATE = 300 * MB
LOOK_SECONDS = 0.1


class Memory:
    """The private bytes of a process, watched by a thread."""

    def __init__(self, process: psutil.Process) -> None:
        self._process, self._over = process, threading.Event()
        self.before = self.peak = self.now()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def now(self) -> int:
        """As it is."""
        return int(self._process.memory_full_info().uss)

    def _watch(self) -> None:
        while not self._over.wait(LOOK_SECONDS):
            self.peak = max(self.peak, self.now())

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._over.set()
        self._thread.join()


class Cutter:
    """Cuts the line at some places, and sees where the client goes on; `sent` is told of every piece."""

    def __init__(self, line: Proxy, size: int) -> None:
        self._line, self._cuts = line, [int(share * size) for share in CUTS]
        self._place = 0
        self.resumed: list[tuple[int, int]] = []
        """(where it was cut, where it went on)"""

    def sent(self, _name: str, count: int, _size: int) -> None:
        """The client has sent so much."""
        if count < self._place:
            self.resumed.append((self._place, count - len(LINES)))
        self._place = count
        if self._cuts and count >= self._cuts[0]:
            self._cuts.pop(0)
            self._line.be("refuse")  # resets what is connected
            self._line.be("pass")


def write_file(path: Path, size: int) -> None:
    """Text of so many bytes; each megabyte is another one."""
    with path.open("wb") as file:
        for number in range(size // len(LINES)):
            head = f"{number:>63}\n".encode()
            file.write(head + LINES[len(head) :])


def stored_bytes(api: Api) -> int:
    """What the artifact store holds."""
    store = api.settings.data_dir / "artifacts"
    return sum(path.stat().st_size for path in store.rglob("*") if path.is_file())


def send_cut(api: Api, path: Path) -> bool:
    """Send the file over a line that is cut; prints what happened."""
    size, host = path.stat().st_size, ("127.0.0.1", api.port)
    begun = time.perf_counter()
    with proxy(host) as line, Memory(api.process) as memory:
        cutter = Cutter(line, size)
        with OptipfairClient(f"http://127.0.0.1:{line.port}", api.key, timeout=600) as client:
            done = client.upload("calibration", "large", path, on_bytes=cutter.sent)
    for place, again in cutter.resumed:
        print(f"cut at {place / MB:,.0f} MB, went on at {again / MB:,.0f} MB")
    print(f"{size / MB:,.0f} MB, hashed and checked: {time.perf_counter() - begun:.0f} s")
    print(f"private memory of the API: {memory.before / MB:.0f} MB before, {memory.peak / MB:.0f} MB at most")
    resumed = len(cutter.resumed) == len(CUTS) and all(again > place // 2 for place, again in cutter.resumed)
    return done["state"] == "complete" and resumed and memory.peak < MAX_PRIVATE


def send_wrong(api: Api, path: Path) -> bool:
    """Send the file under a hash that is not its own; prints what became of it."""
    before, size = stored_bytes(api), path.stat().st_size
    file = {"name": "wrong.txt", "size": size, "sha256": hashlib.sha256(b"other").hexdigest()}
    body = {"kind": "calibration", "name": "wrong", "files": [file]}
    headers = {"Authorization": f"Bearer {api.key}"}
    with (
        httpx.Client(base_url=api.url, headers=headers, timeout=600) as client,
        Memory(api.process) as memory,
    ):
        base = f"/v1/uploads/{client.post('/v1/uploads', json=body).json()['id']}"
        with path.open("rb") as pieces:
            sent = client.put(
                f"{base}/files/wrong.txt", content=_pieces(pieces), headers={"Content-Length": str(size)}
            )
        refused = client.post(f"{base}/complete")
        left = client.get(base).json()["files"][0]["offset"]
    kept = stored_bytes(api) - before
    print(f"a wrong hash: PUT {sent.status_code}, complete {refused.status_code} {refused.json()['code']}")
    print(f"  left behind: {kept} bytes on disk, offset {left}; memory at most {memory.peak / MB:.0f} MB")
    said = (sent.status_code, refused.status_code, refused.json()["code"])
    return said == (204, 422, "upload_hash_mismatch") and (kept, left) == (0, 0) and memory.peak < MAX_PRIVATE


def _pieces(file: Any) -> Iterator[bytes]:
    while piece := file.read(len(LINES)):
        yield piece


def main() -> int:
    """Send both, and say whether all held."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gb", type=float, default=2.0)
    parser.add_argument("--folder", type=Path, help="where there is room for three times as much")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="optipfair-upload-", dir=given.folder) as folder:
        path = Path(folder) / "large.txt"
        write_file(path, int(given.gb * 1000) * MB)
        with alone(Path(folder) / "data") as api:
            held = [send_cut(api, path), send_wrong(api, path)]
    return 0 if all(held) else 1


if __name__ == "__main__":
    raise SystemExit(main())
