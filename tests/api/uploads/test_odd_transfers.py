"""Transfers that meet each other, and such as never meant to bring a whole file."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from api.context import Services
from api.problem import Problem
from api.uploads import receiving
from tests.api.conftest import Caller
from tests.api.test_uploads import declare, offset, put


def test_a_transfer_that_meets_the_end_of_a_cut_one_is_told_to_go_on_from_there(
    caller: Caller, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else its part would be dropped, and all behind that gap sent twice."""
    monkeypatch.setattr(receiving, "PART_BYTES", 2000)
    monkeypatch.setattr(receiving, "WRITE_BYTES", 500)
    text = b"x" * 6000
    upload = declare(caller, {"a.txt": text}, "calibration")
    file = services.repository.get_upload(upload).files[0]

    async def chunks() -> AsyncIterator[bytes]:
        yield text[:1000]
        assert put(caller, upload, "a.txt", text[:1500], 0, len(text)).status_code == 204
        for place in range(1000, len(text), 500):
            yield text[place : place + 500]

    with pytest.raises(Problem, match="Upload-Offset") as caught:
        asyncio.run(receiving.receive(services, file, receiving.Stretch(0, len(text)), chunks()))
    assert (caught.value.status, caught.value.code) == (503, "upload_overtaken")
    assert offset(caller, upload, "a.txt") == 1500
    assert put(caller, upload, "a.txt", text[1500:], 1500, len(text)).status_code == 204
    assert caller.post(f"/v1/uploads/{upload}/complete").status_code == 200


def test_a_sparse_upload_takes_only_the_room_of_what_was_sent(caller: Caller, services: Services) -> None:
    """One byte at the end of what is said to be 90 GB: neither room nor a whole file comes of it."""
    size = 90 * 10**9
    file = {"name": "a.txt", "size": size, "sha256": "0" * 64}
    body = {"kind": "calibration", "name": "sparse", "files": [file]}
    upload = caller.post("/v1/uploads", json=body).json()["id"]
    assert put(caller, upload, "a.txt", b"x", size - 1, size).status_code == 204
    assert [part.size for part in services.repository.get_upload(upload).files[0].parts] == [1]
    refused = caller.post(f"/v1/uploads/{upload}/complete")
    assert (refused.status_code, refused.json()["code"]) == (422, "upload_incomplete")
    kept = sum(file.stat().st_size for file in services.settings.data_dir.rglob("*") if file.name == "part")
    assert kept == 1
