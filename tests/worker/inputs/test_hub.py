"""Hub models come from HF_ENDPOINT at a pinned commit, without pickles or code, into the cache."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
from huggingface_hub.errors import HfHubHTTPError

from optipfair_engine.errors import CalibrationError
from tests.worker.inputs.hub_stand_in import COMMIT, hub_with
from worker.inputs.hub import HubUnavailableError, hub_texts

# The endpoint is read when huggingface_hub is imported, so each use is a process of its own.
USE = """
import json, sys
from pathlib import Path
from optipfair_engine.errors import EngineError
from optipfair_engine.progress import null_reporter
from worker.inputs.cache import FolderCache
from worker.engine.failures import describe
from worker.inputs.hub import HubUnavailableError, hub_model

cache, model_id, revision, limit = Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
try:
    store = FolderCache(cache, limit)
    with hub_model(store, model_id, revision, limit_bytes=limit, report=null_reporter) as folder:
        names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
        print(json.dumps({"files": [n for n in names if not n.startswith(".")]}))
except (EngineError, HubUnavailableError) as error:
    print(json.dumps(describe(error)))
"""
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "model.safetensors": b"w" * 500,
    "pytorch_model.bin": b"pickle",
    "modeling_evil.py": b"import os",
    "tokenizer.json": b"{}",
}


def use(endpoint: str, cache: Path, model_id: str = "acme/tiny", limit: int = 10_000) -> dict[str, Any]:
    environ = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    environ |= {"HF_HOME": str(cache.parent / "hf"), "PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run(
        [sys.executable, "-c", USE, str(cache), model_id, COMMIT, str(limit)],
        capture_output=True,
        text=True,
        env=environ,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def test_only_weights_configuration_and_tokenizer_are_downloaded_and_only_once(tmp_path: Path) -> None:
    with hub_with("acme/tiny", FILES) as (endpoint, asked):
        first = use(endpoint, tmp_path / "cache")
        assert first == {"files": ["config.json", "model.safetensors", "tokenizer.json"]}
        downloads = len(asked)
        assert use(endpoint, tmp_path / "cache") == first
        assert len(asked) == downloads
        assert not [path for path in asked if "modeling_evil" in path or "pytorch_model" in path]


def test_a_model_with_pickled_weights_only_is_refused(tmp_path: Path) -> None:
    files = {name: body for name, body in FILES.items() if not name.endswith(".safetensors")}
    with hub_with("acme/tiny", files) as (endpoint, asked):
        assert use(endpoint, tmp_path / "cache")["code"] == "model_pickled"
        assert not [path for path in asked if "resolve" in path]


def test_a_model_that_is_larger_than_the_cache_is_refused_before_the_download(tmp_path: Path) -> None:
    with hub_with("acme/tiny", FILES) as (endpoint, asked):
        assert use(endpoint, tmp_path / "cache", limit=400)["code"] == "model_too_large"
        assert not [path for path in asked if "resolve" in path]


def test_an_unknown_model_is_the_users_error(tmp_path: Path) -> None:
    with hub_with("acme/tiny", FILES) as (endpoint, _asked):
        assert use(endpoint, tmp_path / "cache", model_id="acme/other")["code"] == "model_not_found"


def test_a_hub_that_does_not_answer_is_tried_again(tmp_path: Path) -> None:
    answer = use("http://127.0.0.1:9", tmp_path / "cache")
    assert (answer["code"], answer["retry"]) == ("hub_unavailable", True)
    assert "acme/tiny" in answer["message"]


def test_a_data_set_that_cannot_be_reached_is_tried_again_and_one_that_is_not_there_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rows(error: Exception | None) -> Iterator[dict[str, str]]:
        yield from ({"text": text} for text in ("one", " ", "two", "three"))
        if error is not None:
            raise error

    def hub(answer: Any) -> None:
        def load_dataset(*_: object, **__: object) -> Any:
            if isinstance(answer, Exception):
                raise answer
            return answer

        monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))

    hub(rows(None))
    assert hub_texts("acme/texts", tmp_path, 2) == ["one", "two"]
    slow = httpx2.ReadTimeout("slow")
    busy = HfHubHTTPError("busy", response=httpx2.Response(503, request=httpx2.Request("GET", "http://hub")))
    for away in (ConnectionError("no route"), rows(TimeoutError("slow")), rows(slow), busy):
        hub(away)
        with pytest.raises(HubUnavailableError):
            hub_texts("acme/texts", tmp_path, 9)
    absent = HfHubHTTPError(
        "none", response=httpx2.Response(404, request=httpx2.Request("GET", "http://hub"))
    )
    for error in (FileNotFoundError("no such data set"), absent):
        hub(error)
        with pytest.raises(CalibrationError):
            hub_texts("acme/texts", tmp_path, 9)
