"""What the client sends of a folder, and how a job file names what is to be uploaded."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.client import ClientError, OptipfairClient
from service.client.uploads import chosen, resolve


class Server(httpx.BaseTransport):
    """Uploads in memory, over connections that are cut every so many bytes."""

    def __init__(self, cut_after: int) -> None:
        self.cut_after, self.cuts = cut_after, 0
        self.bodies: dict[str, bytearray] = {}
        self.declared: list[dict[str, Any]] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        name = request.url.path.rpartition("/")[2]
        if request.method == "POST" and name == "uploads":
            self.declared = json.loads(request.read())["files"]
            self.bodies = {file["name"]: bytearray() for file in self.declared}
            return httpx.Response(201, json={"id": "u", "files": [self._state(f) for f in self.declared]})
        if request.method == "HEAD":
            return httpx.Response(204, headers={"Upload-Offset": str(len(self.bodies[name]))})
        if request.method == "PUT":
            return self._take(request, self.bodies[name])
        whole = all(
            hashlib.sha256(self.bodies[file["name"]]).hexdigest() == file["sha256"] for file in self.declared
        )
        return httpx.Response(200 if whole else 422, json={"id": "u"})

    def _take(self, request: httpx.Request, body: bytearray) -> httpx.Response:
        first = int(request.headers["Content-Range"].removeprefix("bytes ").split("-")[0])
        assert first == len(body)
        came = 0
        for piece in request.stream:  # type: ignore[union-attr]
            body += piece
            came += len(piece)
            if came >= self.cut_after:
                self.cuts += 1
                raise httpx.WriteError("cut")
        return httpx.Response(204)

    def _state(self, file: dict[str, Any]) -> dict[str, Any]:
        return {"name": file["name"], "state": "here" if file["size"] == 0 else "missing"}


def test_a_transfer_that_is_cut_goes_on_where_it_was(tmp_path: Path) -> None:
    data = bytes(range(256)) * 4096 * 7  # 7 MiB in pieces of 1 MiB
    (tmp_path / "model.safetensors").write_bytes(data)
    (tmp_path / "config.json").write_bytes(b"{}")
    (tmp_path / "empty.txt").write_bytes(b"")
    (tmp_path / "README.md").write_bytes(b"no part of a model")
    (tmp_path / ".hidden.json").write_bytes(b"{}")
    server = Server(cut_after=2 * 1024 * 1024)
    client = OptipfairClient("http://test", "ofk_x", transport=server, patience=60)
    assert client.upload("model", "mine", tmp_path)["id"] == "u"
    assert bytes(server.bodies["model.safetensors"]) == data
    assert server.cuts == 3
    assert set(server.bodies) == {"config.json", "empty.txt", "model.safetensors"}


def test_what_can_not_be_sent_is_said(tmp_path: Path) -> None:
    with pytest.raises(ClientError, match="no file of"):
        chosen("model", [tmp_path])
    with pytest.raises(ClientError, match="no kind"):
        chosen("dataset", [tmp_path])
    (tmp_path / "a").mkdir()
    for file in (tmp_path / "x.json", tmp_path / "a" / "x.json"):
        file.write_text("{}")
    with pytest.raises(ClientError, match="same name"):
        chosen("model", [tmp_path, tmp_path / "a"])
    client = OptipfairClient("http://test", "ofk_x", transport=Server(1))
    with pytest.raises(ClientError, match="No such file"):
        client.upload("suite", "s", tmp_path / "absent.csv")


def test_a_job_file_names_what_is_to_be_uploaded() -> None:
    sent: list[tuple[str, Path]] = []

    def upload(kind: str, path: Path) -> str:
        sent.append((kind, path))
        return f"id-{len(sent)}"

    step = {
        "model": {"upload": "m"},
        "suite": {"upload": "s.csv"},
        "baseline": {"source": "local", "name": "b"},
    }
    prune = {"model": {"upload": "m"}, "calibration": {"upload": "c.txt", "max_length": 8}}
    steps = [{"name": "a", "kind": "prune", "spec": prune}, {"name": "b", "kind": "bias", "spec": step}]
    body = {"kind": "pipeline", "spec": {"steps": steps}, "labels": {"upload": "kept"}}
    made = resolve(body, Path("ci"), upload)
    assert sent == [("model", Path("ci/m")), ("calibration", Path("ci/c.txt")), ("suite", Path("ci/s.csv"))]
    first, second = (step["spec"] for step in made["spec"]["steps"])
    assert first["model"] == second["model"] == {"source": "upload", "id": "id-1"}
    assert first["calibration"] == {"source": "upload", "id": "id-2", "max_length": 8}
    assert second["suite"] == {"source": "upload", "id": "id-3"}
    assert second["baseline"] == {"source": "local", "name": "b"}
    assert made["labels"] == {"upload": "kept"}
