"""Settings handed to child processes as `OPTIPFAIR_*` variables, each child getting only what it may know."""

from __future__ import annotations

import os
from collections.abc import Mapping

from jobs.settings import Settings

PREFIX = "OPTIPFAIR_"
#: A worker runs code over other people's files: it gets nothing that signs links or opens the API.
API_ONLY = frozenset({"secret_file", "host", "port", "public_url", "allow_loopback_webhooks"})
_API_SECRETS = ("OPTIPFAIR_ADMIN", "OPTIPFAIR_API_KEY", "OPTIPFAIR_KEY", "OPTIPFAIR_SECRET", "OPTIPFAIR_URL")


def api_environment(settings: Settings, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment of the HTTP process: everything."""
    return {**_without_settings(environ), **_variables(settings, frozenset())}


def worker_environment(settings: Settings, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment of a worker: no secret of the API, and threads divided among engine processes."""
    kept = {name: text for name, text in environ.items() if not name.startswith(_API_SECRETS)}
    return {**_without_settings(kept), **_variables(settings, API_ONLY)}


def _without_settings(environ: Mapping[str, str]) -> dict[str, str]:
    names = {PREFIX + name.upper() for name in Settings.model_fields}
    return {name: text for name, text in environ.items() if name not in names}


def _variables(settings: Settings, without: frozenset[str]) -> dict[str, str]:
    given = settings.model_dump(exclude=set(without), exclude_none=True)
    return {PREFIX + name.upper(): _text(value) for name, value in given.items()}


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
