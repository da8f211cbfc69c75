"""Which store the settings mean."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from jobs.artifacts.base import ArtifactStore
from jobs.artifacts.local import LocalStore
from jobs.patience import WORK, Patience
from jobs.settings import Settings

#: A store that is away for so long costs an attempt; the lease is kept meanwhile.
UPLOAD_RETRY_SECONDS = 180.0

if TYPE_CHECKING:
    from obstore.store import BackoffConfig, ClientConfig, RetryConfig

    from jobs.artifacts.s3 import S3RangeStore


def make_store(settings: Settings, *, patience: Patience = WORK) -> ArtifactStore:
    """The store of `artifacts_url`: a path, file:///path, or s3://bucket/prefix. ValueError otherwise.

    `patience` is for S3: with `WORK` a request is tried again for minutes, with `REQUEST` for seconds.
    """
    url = settings.artifacts_url
    parts = urlsplit(url)
    if parts.scheme == "s3":
        return _s3(settings, parts.netloc, parts.path.strip("/"), patience)
    if parts.scheme == "file":
        return LocalStore(Path(unquote(parts.path)))
    if "://" in url:
        raise ValueError(f"artifacts_url: {parts.scheme}:// is not supported; use a path, file:// or s3://")
    return LocalStore(Path(url).absolute())


def _s3(settings: Settings, bucket: str, prefix: str, patience: Patience) -> S3RangeStore:
    from obstore.store import S3Store  # an API on a local disk does not load it

    from jobs.artifacts.s3 import S3RangeStore

    if not bucket:
        raise ValueError("artifacts_url: s3:// needs a bucket, as in s3://bucket/prefix")
    options: dict[str, Any] = {"region": settings.artifacts_s3_region}
    if settings.artifacts_s3_endpoint is not None:
        options["endpoint"] = settings.artifacts_s3_endpoint
    if settings.artifacts_s3_access_key is not None:
        options["access_key_id"] = settings.artifacts_s3_access_key
        options["secret_access_key"] = settings.artifacts_s3_secret_key
    store = S3Store(
        bucket,
        prefix=prefix or None,
        client_options=_client_options(settings, patience),
        retry_config=_retries(patience),
        **options,
    )
    return S3RangeStore(store, settings.work_dir / "stage")


def _client_options(settings: Settings, patience: Patience) -> ClientConfig:
    """The limits of one request. That of reading would also count while a part is sent: for requests only."""
    limits: ClientConfig = {
        "connect_timeout": timedelta(seconds=patience.connect),
        "timeout": timedelta(seconds=settings.artifacts_s3_timeout_seconds),
        "allow_http": (settings.artifacts_s3_endpoint or "").startswith("http://"),
    }
    if patience.answer is not None and patience is not WORK:
        limits["read_timeout"] = timedelta(seconds=patience.answer)
    return limits


def _retries(patience: Patience) -> RetryConfig:
    """Tries after each other at most so long; obstore's own number of them ends within seconds if refused."""
    seconds = UPLOAD_RETRY_SECONDS if patience is WORK else patience.answer or 0.0
    backoff: BackoffConfig = {
        "init_backoff": timedelta(seconds=0.1),
        "max_backoff": timedelta(seconds=3),
        "base": 2,
    }
    return {"max_retries": 1000, "retry_timeout": timedelta(seconds=seconds), "backoff": backoff}
