"""A plain HTTP client of the service: the standard library only, as a CI script would do it with curl."""

from __future__ import annotations

import json
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class ServiceError(Exception):
    """The service answered with an error; the text is its problem document."""


class Client:
    """Talks to one service with one API key."""

    def __init__(self, base_url: str, key: str) -> None:
        self.base_url = base_url.rstrip("/")
        self._key = key

    def _open(self, method: str, url: str, body: Any = None, accept: str = "application/json") -> Any:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {self._key}", "Accept": accept}
        if data is not None:
            headers["Content-Type"] = "application/json"
        request = urllib.request.Request(self.base_url + url, data=data, method=method, headers=headers)  # noqa: S310 - http(s) base given by the caller
        try:
            return urllib.request.urlopen(request, timeout=120)  # noqa: S310
        except urllib.error.HTTPError as error:
            raise ServiceError(
                f"{method} {url}: {error.code} {error.read().decode(errors='replace')}"
            ) from error

    def get(self, url: str) -> Any:
        """The parsed JSON of a GET."""
        with self._open("GET", url) as response:
            return json.load(response)

    def text(self, url: str) -> str:
        """The body of a GET as text."""
        with self._open("GET", url, accept="*/*") as response:
            return str(response.read().decode())

    def post(self, url: str, body: Any) -> Any:
        """The parsed JSON of a POST."""
        with self._open("POST", url, body) as response:
            return json.load(response)

    def events(self, job_id: str) -> Iterator[dict[str, Any]]:
        """A job's events as they happen (server-sent events), until the last one."""
        with self._open("GET", f"/v1/jobs/{job_id}/events", accept="text/event-stream") as response:
            for line in response:
                if line.startswith(b"data:"):
                    yield json.loads(line[len(b"data:") :])


def download(url: str, target: Path) -> None:
    """Fetch a signed link; the signature is the permission, no key is sent."""
    with urllib.request.urlopen(url, timeout=120) as response, target.open("wb") as file:  # noqa: S310
        shutil.copyfileobj(response, file, 1 << 20)
