"""Models and data sets from the hub: a pinned revision, safetensors only, into a size-limited cache.

`HF_ENDPOINT` and `HF_TOKEN` work as everywhere. Runs in the engine's process, so that a cancelled job ends a
download.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from optipfair_engine.checkpoints import hub_files
from optipfair_engine.errors import CalibrationError, CheckpointError
from optipfair_engine.progress import Reporter
from worker.inputs.cache import FULL, FolderCache


def cache_key(model_id: str, revision: str) -> str:
    """The cache entry of a model at a commit, as a plain name."""
    return f"{model_id.replace('/', '--')}@{revision}"


@contextmanager
def hub_model(
    cache: FolderCache, model_id: str, revision: str, *, limit_bytes: int, report: Reporter
) -> Iterator[Path]:
    """A folder with the model's files at that commit, downloaded if it is not in the cache.

    Raises:
        CheckpointError: it does not exist, has no safetensors weights, or is larger than the cache.
    """

    def fill(folder: Path) -> None:
        report("load", 0, 1, f"downloading {model_id}")
        download_model(model_id, revision, folder, limit_bytes=limit_bytes)

    with cache.folder(cache_key(model_id, revision), fill) as folder:
        yield folder


def download_model(model_id: str, revision: str, folder: Path, *, limit_bytes: int) -> None:
    """Download the allowed files of one commit into a folder.

    Raises:
        CheckpointError: the hub does not have it, or not in a form that may be loaded.
        HubUnavailableError: the hub did not answer.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    try:
        info = HfApi().model_info(model_id, revision=revision, files_metadata=True)
        _check_files(model_id, info, limit_bytes)
        snapshot_download(
            model_id,
            revision=revision,
            local_dir=folder,
            allow_patterns=list(hub_files.ALLOWED),
            ignore_patterns=list(hub_files.FOREIGN),
        )
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise CheckpointError(
            f"the hub has no model {model_id} at {revision[:12]}", "model_not_found"
        ) from error
    except _transfer_errors() as error:
        if isinstance(error, OSError) and (error.errno in FULL or (error.errno and error.filename)):
            raise  # our disk, not the hub
        raise HubUnavailableError(f"{model_id} can't be downloaded now: {type(error).__name__}") from error


def _transfer_errors() -> tuple[type[Exception], ...]:
    """What the hub's library lets through when a transfer fails; its HTTP client's errors are no OSErrors."""
    from huggingface_hub.errors import HTTPError, XetDownloadError  # type: ignore[attr-defined]

    return OSError, HTTPError, XetDownloadError


def _is_outage(error: Exception) -> bool:
    """Whether the hub, and not what was asked of it, is at fault: no answer, or one that says "later"."""
    response = getattr(error, "response", None)
    if response is not None:
        return bool(response.status_code >= 500 or response.status_code == 429)
    if isinstance(error, OSError):
        return isinstance(error, ConnectionError | TimeoutError)
    return not isinstance(error, ValueError)


class HubUnavailableError(Exception):
    """The hub did not answer: another attempt may succeed."""


def _check_files(model_id: str, info: Any, limit_bytes: int) -> None:
    siblings = info.siblings or []
    names = [sibling.rfilename for sibling in siblings]
    if not any(name.endswith((".safetensors", ".gguf")) for name in names):
        raise CheckpointError(
            f"{model_id} has no safetensors weights; pickled weights are not loaded", "model_pickled"
        )
    total = sum(s.size or 0 for s in siblings if s.rfilename.endswith((".safetensors", ".gguf")))
    if total > limit_bytes:
        raise CheckpointError(
            f"{model_id} has {total:,} bytes of weights, the model cache holds {limit_bytes:,}",
            "model_too_large",
        )


def hub_texts(dataset: str, cache: Path, num_samples: int) -> list[str]:
    """The first texts of a hub data set's training split (its column `text`, or its only text column).

    Raises:
        CalibrationError: there is no such data set, it has no such column, or no text in it.
        HubUnavailableError: the hub did not answer.
    """
    from datasets import load_dataset

    try:
        rows = load_dataset(dataset, split="train", streaming=True, cache_dir=str(cache))
        texts = _first_texts(rows, dataset, num_samples)
    except CalibrationError:
        raise
    except ValueError as error:
        raise _unreadable(dataset, error) from error
    except _transfer_errors() as error:
        raise _unreadable(dataset, error) from error
    if not texts:
        raise CalibrationError(f"the hub data set {dataset} holds no text")
    return texts


def _unreadable(dataset: str, error: Exception) -> Exception:
    if _is_outage(error):
        return HubUnavailableError(f"{dataset} can't be read now: {type(error).__name__}")
    return CalibrationError(f"the hub data set {dataset} can't be read: {type(error).__name__}")


def _first_texts(rows: Iterable[dict[str, Any]], dataset: str, num_samples: int) -> list[str]:
    """The first texts that are not blank; rows come from the hub while they are read."""
    texts = (text for row in rows if (text := _text_of(row, dataset)).strip())
    return list(islice(texts, num_samples))


def _text_of(row: dict[str, Any], dataset: str) -> str:
    if isinstance(row.get("text"), str):
        return str(row["text"])
    columns = [name for name, value in row.items() if isinstance(value, str)]
    if len(columns) != 1:
        raise CalibrationError(f"the hub data set {dataset} has no column 'text' (text columns: {columns})")
    return str(row[columns[0]])
