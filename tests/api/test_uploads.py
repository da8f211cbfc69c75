"""Uploads over HTTP: in any order, again after a cut, checked as a whole, and never seen in part."""

from __future__ import annotations

import hashlib
import json
import pickle
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI

from api.background.purging import purge_some
from api.context import Services
from api.uploads import receiving
from jobs.artifacts import remove_orphans
from jobs.uploads.checking import read_file
from tests.api.conftest import Caller, FakeWorker, prune

CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 2,
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_attention_heads": 2,
    "vocab_size": 32,
}


def safetensors(size: int = 4096, declared: int | None = None) -> bytes:
    """A file of one tensor of bytes."""
    tensor = {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}
    header = json.dumps({"model.embed_tokens.weight": tensor}).encode()
    return struct.pack("<Q", len(header) if declared is None else declared) + header + bytes(size)


REMOTE = {"model_type": "own", "auto_map": {"AutoModel": "x.Y"}}
MODEL = {"config.json": json.dumps(CONFIG).encode(), "model.safetensors": safetensors()}


def declaration(files: dict[str, bytes], /, kind: str = "model", **changes: Any) -> dict[str, Any]:
    listed = [
        {"name": name, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in files.items()
    ]
    return {"kind": kind, "name": "mine", "files": listed, **changes}


def declare(caller: Caller, files: dict[str, bytes], kind: str = "model") -> str:
    response = caller.post("/v1/uploads", json=declaration(files, kind))
    assert response.status_code == 201, response.text
    assert response.headers["Location"] == f"/v1/uploads/{response.json()['id']}"
    return str(response.json()["id"])


def put(caller: Caller, upload: str, name: str, data: bytes, first: int | None = None, size: int = 0) -> Any:
    headers = {} if first is None else {"Content-Range": f"bytes {first}-{first + len(data) - 1}/{size}"}
    return caller.put(f"/v1/uploads/{upload}/files/{name}", content=data, headers=headers)


def send(caller: Caller, files: dict[str, bytes], kind: str = "model") -> str:
    upload = declare(caller, files, kind)
    for name, data in files.items():
        assert put(caller, upload, name, data).status_code == 204
    response = caller.post(f"/v1/uploads/{upload}/complete")
    assert (response.status_code, response.json()["state"]) == (200, "complete"), response.text
    return upload


def states(caller: Caller, upload: str) -> dict[str, tuple[str, int]]:
    files = caller.get(f"/v1/uploads/{upload}").json()["files"]
    return {file["name"]: (file["state"], file["offset"]) for file in files}


def stored(services: Services) -> list[str]:
    return [f"{folder.job_id}/{folder.attempt}" for folder in services.store.folders()]


def offset(caller: Caller, upload: str, name: str) -> int:
    response = caller.head(f"/v1/uploads/{upload}/files/{name}")
    assert response.status_code == 204
    return int(response.headers["Upload-Offset"])


def test_a_model_is_sent_completed_and_named_in_a_job(caller: Caller, worker: FakeWorker) -> None:
    upload = send(caller, MODEL)
    seen = caller.get(f"/v1/uploads/{upload}").json()
    assert seen["facts"]["num_layers"] == 2
    assert {file["state"] for file in seen["files"]} == {"here"}
    ref = {"source": "upload", "id": upload}
    body = prune(spec={"model": ref})
    assert caller.post("/v1/jobs:validate", json=body).json()["peak_memory_bytes"] > 0
    job = caller.post("/v1/jobs", json=body)
    assert job.status_code == 202, job.text
    assert job.json()["spec"]["model"] == ref
    assert caller.post(f"/v1/uploads/{upload}/complete").json()["state"] == "complete"  # a repeat is safe


def test_ranges_come_in_any_order_and_again(
    caller: Caller, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receiving, "PART_BYTES", 1000)
    monkeypatch.setattr(receiving, "WRITE_BYTES", 300)
    data = bytes(range(256)) * 20
    text = "".join(chr(32 + byte % 90) for byte in data).encode()
    upload = declare(caller, {"a.txt": text}, "calibration")
    size = len(text)
    assert states(caller, upload) == {"a.txt": ("missing", 0)}
    assert put(caller, upload, "a.txt", text[3000:], 3000, size).status_code == 204
    assert (states(caller, upload)["a.txt"], offset(caller, upload, "a.txt")) == (("partial", 0), 0)
    assert put(caller, upload, "a.txt", text[:100], 0, size).headers["Upload-Offset"] == "100"
    assert put(caller, upload, "a.txt", text[50:1500], 50, size).headers["Upload-Offset"] == "1500"
    assert put(caller, upload, "a.txt", text[:100], 0, size).status_code == 204  # again: nothing to store
    refused = caller.post(f"/v1/uploads/{upload}/complete")
    assert (refused.status_code, refused.json()["code"]) == (422, "upload_incomplete")
    assert put(caller, upload, "a.txt", text[1000:4000], 1000, size).headers["Upload-Offset"] == str(size)
    assert caller.post(f"/v1/uploads/{upload}/complete").status_code == 200
    file = services.repository.get_upload(upload).files[0]
    assert b"".join(read_file(services.store, file)) == text
    assert sum(part.size for part in file.parts) == size  # no byte is stored twice
    assert len(file.parts) > 5


def test_a_cut_transfer_goes_on_where_it_was(caller: Caller, services: Services) -> None:
    text = b"x" * 5000
    upload = declare(caller, {"a.txt": text}, "calibration")

    def cut() -> Iterator[bytes]:
        yield text[:2000]

    headers = {"Content-Range": f"bytes 0-4999/{len(text)}"}
    response = caller.put(f"/v1/uploads/{upload}/files/a.txt", content=cut(), headers=headers)
    assert (response.status_code, response.json()["code"]) == (422, "upload_size_mismatch")
    assert offset(caller, upload, "a.txt") == 2000
    assert put(caller, upload, "a.txt", text[2000:], 2000, len(text)).status_code == 204
    assert caller.post(f"/v1/uploads/{upload}/complete").status_code == 200


def test_a_file_sent_whole_replaces_what_came(caller: Caller, services: Services) -> None:
    right, wrong = b"right" * 100, b"wrong" * 100
    upload = declare(caller, {"a.txt": right}, "calibration")
    assert put(caller, upload, "a.txt", wrong).status_code == 204
    assert put(caller, upload, "a.txt", right).status_code == 204
    assert len(stored(services)) == 1
    assert caller.post(f"/v1/uploads/{upload}/complete").status_code == 200


def test_a_wrong_hash_is_refused_and_leaves_nothing(
    caller: Caller, worker: FakeWorker, services: Services
) -> None:
    right = b"right" * 100
    upload = declare(caller, {"a.txt": right}, "calibration")
    put(caller, upload, "a.txt", b"wrong" * 100)
    response = caller.post(f"/v1/uploads/{upload}/complete")
    assert (response.status_code, response.json()["code"]) == (422, "upload_hash_mismatch")
    assert stored(services) == []
    assert states(caller, upload) == {"a.txt": ("missing", 0)}
    put(caller, upload, "a.txt", right)
    assert caller.post(f"/v1/uploads/{upload}/complete").status_code == 200


OWN_CODE = json.dumps({**CONFIG, **REMOTE}).encode()
PICKLE = pickle.dumps({"model.embed_tokens.weight": [0.0] * 100})
HOSTILE_MODELS: dict[str, tuple[dict[str, bytes], str]] = {
    "no weights": ({"config.json": MODEL["config.json"]}, "model_not_found"),
    "a config that is no JSON": ({**MODEL, "config.json": b"{"}, "model_config_invalid"),
    "a config of endless depth": ({**MODEL, "config.json": b'{"a":' * 50_000}, "model_config_invalid"),
    "remote code": ({**MODEL, "config.json": OWN_CODE}, "model_remote_code"),
    "a header that says 10^18 bytes": (
        {**MODEL, "model.safetensors": safetensors(declared=10**18)},
        "model_header_invalid",
    ),
    "a header longer than the file": (
        {**MODEL, "model.safetensors": safetensors(declared=90_000_000)},
        "model_truncated",
    ),
    "a file shorter than its header says": (
        {**MODEL, "model.safetensors": safetensors()[:-1]},
        "model_truncated",
    ),
    "a zip by another name": ({**MODEL, "model.safetensors": b"PK\x03\x04" + bytes(100)}, "model_truncated"),
    "a pickle by another name": ({**MODEL, "model.safetensors": PICKLE}, "model_header_invalid"),
    "zeros": ({**MODEL, "model.safetensors": bytes(4096)}, "model_header_invalid"),
    "counts beyond all bounds in GGUF": (
        {"config.json": MODEL["config.json"], "a.gguf": b"GGUF" + b"\xff" * 20},
        "model_header_invalid",
    ),
}


@pytest.mark.parametrize(("files", "code"), HOSTILE_MODELS.values(), ids=HOSTILE_MODELS.keys())
def test_models_that_no_worker_could_use_are_refused_with_the_header_readers_code(
    caller: Caller, worker: FakeWorker, files: dict[str, bytes], code: str
) -> None:
    upload = declare(caller, files)
    for name, data in files.items():
        put(caller, upload, name, data)
    response = caller.post(f"/v1/uploads/{upload}/complete")
    assert (response.status_code, response.json()["code"]) == (422, code)
    job = caller.post("/v1/jobs", json=prune(spec={"model": {"source": "upload", "id": upload}}))
    assert (job.status_code, job.json()["code"]) == (422, "upload_not_complete")


def test_a_text_must_be_text(caller: Caller) -> None:
    upload = declare(caller, {"a.txt": b"\xff\xfe\x00"}, "calibration")
    put(caller, upload, "a.txt", b"\xff\xfe\x00")
    assert caller.post(f"/v1/uploads/{upload}/complete").json()["code"] == "upload_not_text"


def test_what_the_tenant_has_sent_before_is_here_at_once(
    caller: Caller, stranger: Caller, services: Services
) -> None:
    first = send(caller, MODEL)
    folders = stored(services)
    again = declare(caller, MODEL)
    assert {state for state, _ in states(caller, again).values()} == {"here"}
    assert put(caller, again, "config.json", b"x" * len(MODEL["config.json"])).status_code == 204  # dropped
    assert caller.post(f"/v1/uploads/{again}/complete").status_code == 200
    assert stored(services) == folders
    other = declare(stranger, MODEL)
    assert {state for state, _ in states(stranger, other).values()} == {"missing"}
    assert caller.delete(f"/v1/uploads/{first}").status_code == 204
    assert stored(services) == folders  # the second upload still needs them
    assert caller.delete(f"/v1/uploads/{again}").status_code == 204
    assert stored(services) == []


def test_bytes_that_were_not_verified_are_not_shared(caller: Caller) -> None:
    upload = declare(caller, {"a.txt": b"abc"}, "calibration")
    put(caller, upload, "a.txt", b"xyz")
    assert states(caller, declare(caller, {"a.txt": b"abc"}, "calibration")) == {"a.txt": ("missing", 0)}


HOSTILE_NAMES = {
    "pickled weights": ("pytorch_model.bin", "model", "model_pickled"),
    "pickled weights in capitals": ("weights.PKL", "model", "model_pickled"),
    "code": ("modeling_own.py", "model", "upload_type_refused"),
    "a zip": ("archive.zip", "model", "upload_type_refused"),
    "no ending": ("noending", "model", "upload_type_refused"),
    "weights as a suite": ("model.safetensors", "suite", "upload_type_refused"),
    "path traversal": ("../a.txt", "calibration", "validation_failed"),
    "path traversal with backslashes": ("..\\a.txt", "calibration", "validation_failed"),
    "path traversal, encoded": ("%2e%2e%2fa.txt", "calibration", "validation_failed"),
    "an absolute path": ("/etc/a.txt", "calibration", "validation_failed"),
    "hidden": (".hidden.txt", "calibration", "validation_failed"),
    "a folder": ("a/b.txt", "calibration", "validation_failed"),
    "a NUL": ("a\u0000.txt", "calibration", "validation_failed"),
    "a newline": ("a.txt\n", "calibration", "validation_failed"),
    "letters that look alike": ("ä.txt", "calibration", "validation_failed"),
}


@pytest.mark.parametrize(("name", "kind", "code"), HOSTILE_NAMES.values(), ids=HOSTILE_NAMES.keys())
def test_names_and_types_are_checked(caller: Caller, name: str, kind: str, code: str) -> None:
    response = caller.post("/v1/uploads", json=declaration({name: b"x"}, kind))
    assert (response.status_code, response.json()["code"]) == (422, code)
    assert response.json()["errors"][0]["loc"][:3] == ["body", "files", 0]


@pytest.mark.parametrize(
    "body",
    [
        {},
        declaration(MODEL, kind="dataset"),
        declaration(MODEL, name="../x"),
        declaration(MODEL, files=[]),
        declaration(MODEL, files=[{"name": "a.json", "size": -1, "sha256": "0" * 64}]),
        declaration(MODEL, files=[{"name": "a.json", "size": 10**18, "sha256": "0" * 64}]),
        declaration(MODEL, files=[{"name": "a.json", "size": "1", "sha256": "0" * 64}]),
        declaration(MODEL, files=[{"name": "a.json", "size": 1, "sha256": "0" * 63 + "G"}]),
        declaration({"a.txt": b"", "b.txt": b""}, kind="suite"),
        declaration({"a.json": b"", "A.json": b""}),
        declaration(MODEL, colour="red"),
    ],
)
def test_faulty_declarations_are_refused(caller: Caller, services: Services, body: Any) -> None:
    assert caller.post("/v1/uploads", json=body).status_code == 422
    assert services.repository.list_audit().items == []


@pytest.mark.parametrize(
    ("content", "content_range", "status"),
    [
        (b"abc", "bytes 0-1/10", 422),
        (b"abc", "bytes 8-10/10", 422),
        (b"abc", "bytes 0-2/11", 422),
        (b"abc", "bytes 2-0/10", 422),
        (b"abc", "0-2/10", 400),
        (b"abc", "bytes 0-2", 400),
        (b"abc", "bytes -3/10", 400),
        (b"abc", "bytes 0-99999999999999999999999/10", 400),
        (b"abc", None, 422),
        (b"a" * 11, None, 422),
    ],
)
def test_ranges_and_lengths_that_do_not_fit_are_refused(
    caller: Caller, services: Services, content: bytes, content_range: str | None, status: int
) -> None:
    upload = declare(caller, {"a.txt": b"0123456789"}, "calibration")
    for body in (content, iter([content])):  # with and without a Content-Length
        headers = {} if content_range is None else {"Content-Range": content_range}
        response = caller.put(f"/v1/uploads/{upload}/files/a.txt", content=body, headers=headers)
        assert response.status_code == status, response.text
    assert offset(caller, upload, "a.txt") < 10


def test_the_quota_counts_what_is_declared(
    make_app: Callable[..., FastAPI], make_key: Callable[..., str]
) -> None:
    app = make_app(upload_quota_bytes=10)
    caller = Caller(app, make_key())
    first = declare(caller, {"a.txt": b"123456"}, "calibration")
    response = caller.post("/v1/uploads", json=declaration({"b.txt": b"12345"}, "calibration"))
    assert (response.status_code, response.json()["code"]) == (422, "upload_quota_exceeded")
    assert declare(Caller(app, make_key("other")), {"b.txt": b"12345"}, "calibration")
    caller.delete(f"/v1/uploads/{first}")
    assert declare(caller, {"b.txt": b"12345"}, "calibration")


def test_an_upload_goes_when_its_time_has_passed(
    make_app: Callable[..., FastAPI], make_key: Callable[..., str]
) -> None:
    import time

    app = make_app(upload_ttl_seconds=2)
    caller, services = Caller(app, make_key()), app.state.services
    upload = declare(caller, {"a.txt": b"abc"}, "calibration")
    put(caller, upload, "a.txt", b"abc")
    time.sleep(2.1)
    assert caller.get(f"/v1/uploads/{upload}").status_code == 404
    assert purge_some(services)
    assert stored(services) == []


def test_parts_that_nobody_recorded_are_orphans_and_recorded_ones_are_not(
    caller: Caller, services: Services
) -> None:
    upload = send(caller, {"a.txt": b"abc"}, "calibration")
    file = services.repository.get_upload(upload).files[0]
    kept = stored(services)
    left = services.store.stage(file.blob_id, services.repository.next_part(file.blob_id))
    (left / "part").write_bytes(b"of a process that was killed")
    assert remove_orphans(services.repository, services.store, grace_seconds=-1) == 1
    assert stored(services) == kept


def test_uploads_are_named_wherever_a_job_names_files(
    caller: Caller, stranger: Caller, worker: FakeWorker
) -> None:
    model = {"source": "upload", "id": send(caller, MODEL)}
    text = {"source": "upload", "id": send(caller, {"a.txt": b"some text"}, "calibration")}
    suite = {"source": "upload", "id": send(caller, {"s.csv": b"a,b"}, "suite")}
    bodies = [
        {"kind": "bias", "spec": {"model": model, "suite": suite, "baseline": model}},
        {"kind": "importance", "spec": {"model": model, "calibration": {**text, "max_length": 8}}},
        {"kind": "evaluate", "spec": {"model": model, "text": text}},
        {
            "kind": "pipeline",
            "spec": {"steps": [{"name": "a", "kind": "evaluate", "spec": {"model": model, "text": text}}]},
        },
    ]
    for body in bodies:
        assert caller.post("/v1/jobs:validate", json=body).status_code == 200, body
        refused = stranger.post("/v1/jobs:validate", json=body)
        assert (refused.status_code, refused.json()["code"]) == (422, "upload_not_found")
    wrong = {"kind": "evaluate", "spec": {"model": text, "text": model}}
    response = caller.post("/v1/jobs", json=wrong)
    assert (response.status_code, response.json()["code"]) == (422, "upload_kind_wrong")
    assert response.json()["errors"][0]["loc"] == ["body", "spec", "model", "id"]
    both = {"kind": "evaluate", "spec": {"model": model, "text": {**text, "texts": ["x"]}}}
    assert caller.post("/v1/jobs", json=both).status_code == 422


def test_nothing_is_written_outside_of_the_store(caller: Caller, services: Services, tmp_path: Path) -> None:
    upload = declare(caller, {"a.txt": b"abc"}, "calibration")
    for name in ("..%2Fa.txt", "%2e%2e", "..", "a.txt%00", "b.txt", "A.TXT"):
        assert caller.put(f"/v1/uploads/{upload}/files/{name}", content=b"abc").status_code in (404, 405)
    assert stored(services) == []
