"""Which store the settings mean."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from jobs.artifacts.base import ArtifactStore
from jobs.artifacts.local import LocalStore
from jobs.settings import Settings

if TYPE_CHECKING:
    from jobs.artifacts.s3 import S3RangeStore


def make_store(settings: Settings) -> ArtifactStore:
    """The store of `artifacts_url`: a path, file:///path, or s3://bucket/prefix. ValueError otherwise."""
    url = settings.artifacts_url
    parts = urlsplit(url)
    if parts.scheme == "s3":
        return _s3(settings, parts.netloc, parts.path.strip("/"))
    if parts.scheme == "file":
        return LocalStore(Path(unquote(parts.path)))
    if "://" in url:
        raise ValueError(f"artifacts_url: {parts.scheme}:// is not supported; use a path, file:// or s3://")
    return LocalStore(Path(url).absolute())


def _s3(settings: Settings, bucket: str, prefix: str) -> S3RangeStore:
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
    plain_http = (settings.artifacts_s3_endpoint or "").startswith("http://")
    store = S3Store(bucket, prefix=prefix or None, client_options={"allow_http": plain_http}, **options)
    return S3RangeStore(store, settings.work_dir / "stage")
