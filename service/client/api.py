"""`OptipfairClient`: the service's HTTP as typed Python calls."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, cast
from urllib.parse import quote

import httpx

from service.client import downloads, logs, uploads
from service.client.connection import Connection
from service.client.types import Artifact, Event, Job, Link, Verdict

HELD_SECONDS = 30
"""How long one question for a job's next change is held by the service."""
MARKDOWN, JUNIT = "text/markdown", "application/xml"


class OptipfairClient:
    """Talks to one service with one API key; requests are tried again over dropped connections.

    Args:
        url: where the service is.
        key: an API key, `ofk_…`.
        options: `timeout`, `first_patience`, `patience` (seconds) and `transport` of `Connection`.

    Every call raises `RefusedError` for an error of the service, `UnreachableError` if it does not answer.
    """

    def __init__(self, url: str, key: str, **options: Any) -> None:
        self._connection = Connection(url, key, **options)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._connection.close()

    @property
    def url(self) -> str:
        """Where the service is."""
        return self._connection.url

    def submit(self, request: Mapping[str, Any], *, idempotency_key: str | None = None, wait: int = 0) -> Job:
        """Create a job; the request is the body of `POST /v1/jobs`. With `wait`, up to so many seconds later.

        Without an `idempotency_key` it gets one of its own, so that trying again never makes a second job.
        """
        headers = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}
        if wait:
            headers["Prefer"] = f"wait={wait}"
        answer = self._connection.send("POST", "/v1/jobs", json=request, headers=headers, held=wait)
        return cast("Job", answer.json())

    def validate(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """What a job would need; nothing is created."""
        return dict(self._connection.send("POST", "/v1/jobs:validate", json=request).json())

    def job(self, job_id: str) -> Job:
        """A job as it stands."""
        return cast("Job", self._get(f"/v1/jobs/{_part(job_id)}"))

    def jobs(self, **filters: Any) -> Iterator[Job]:
        """All jobs of a list, newest first; the filters are those of `GET /v1/jobs`."""
        query = {name: value for name, value in filters.items() if value is not None}
        while True:
            page = self._get("/v1/jobs", query)
            yield from page["items"]
            if page["next_cursor"] is None:
                return
            query["cursor"] = page["next_cursor"]

    def wait(
        self, job_id: str, *, on_change: Callable[[Job], None] | None = None, timeout: float | None = None
    ) -> Job:
        """The job when it has ended, or as it is after `timeout` seconds; `on_change` hears of every step."""
        path = f"/v1/jobs/{_part(job_id)}"
        deadline = None if timeout is None else time.monotonic() + timeout
        headers: dict[str, str] = {}
        job: Job | None = None
        while True:
            asked_at = time.monotonic()
            answer = self._connection.send("GET", path, headers=headers, held=HELD_SECONDS)
            if answer.status_code != httpx.codes.NOT_MODIFIED or job is None:
                job = cast("Job", answer.json())
                if on_change is not None:
                    on_change(job)
            elif time.monotonic() - asked_at < 1:
                time.sleep(1)  # something between here and the service does not hold requests
            left = HELD_SECONDS if deadline is None else deadline - time.monotonic()
            if job["terminal"] or left <= 0:
                return job
            seconds = max(1, min(HELD_SECONDS, int(left)))
            headers = {"If-None-Match": answer.headers.get("ETag", ""), "Prefer": f"wait={seconds}"}

    def events(self, job_id: str, *, after: int = 0) -> Iterator[Event]:
        """What has happened to a job so far, after the event of this number."""
        while True:
            page = self._get(f"/v1/jobs/{_part(job_id)}/events", {"after": after})
            yield from page["items"]
            if not page["items"]:
                return
            after = page["items"][-1]["seq"]

    def logs(self, job_id: str, *, attempt: int | None = None, tail: int | None = None) -> str:
        """What the attempts said so far (or one of them), in lines; at most `tail` from the end."""
        path = f"/v1/jobs/{_part(job_id)}/logs{logs.query(attempt, tail)}"
        return self._connection.send("GET", path, headers={"Accept": "text/plain"}).text

    def follow_logs(
        self, job_id: str, *, attempt: int | None = None, tail: int | None = None
    ) -> Iterator[str]:
        """The same lines as they come, to the job's end (or the attempt's); over dropped connections too.

        `tail` is of the lines that are there already.
        """

        def over() -> bool:
            if attempt is None:
                return self.job(job_id)["terminal"]
            tries = self._get(f"/v1/jobs/{_part(job_id)}/attempts")["items"]
            return any(item["number"] == attempt and item["finished_at"] for item in tries)

        return logs.follow(self._connection, f"/v1/jobs/{_part(job_id)}/logs", attempt, tail, over)

    def verdict(self, job_id: str) -> Verdict:
        """What the gates say of an ended job."""
        return cast("Verdict", self._get(f"/v1/jobs/{_part(job_id)}/verdict"))

    def verdict_as(self, job_id: str, media_type: str) -> bytes:
        """The verdict as `text/markdown` or as `application/xml` (JUnit)."""
        path = f"/v1/jobs/{_part(job_id)}/verdict"
        return self._connection.send("GET", path, headers={"Accept": media_type}).content

    def metrics(self, job_id: str) -> dict[str, Any]:
        """The metrics of a job that succeeded."""
        return dict(self._get(f"/v1/jobs/{_part(job_id)}/metrics"))

    def manifest(self, job_id: str) -> str:
        """The SHA-256 of every file, as `sha256sum -c` reads it."""
        return self._connection.send("GET", f"/v1/jobs/{_part(job_id)}/manifest").text

    def artifacts(self, job_id: str) -> list[Artifact]:
        """The files of a job."""
        return cast("list[Artifact]", self._get(f"/v1/jobs/{_part(job_id)}/artifacts"))

    def link(self, job_id: str, name: str, *, ttl_seconds: int = 3600) -> Link:
        """A signed URL of one file, or of all in one tar (`*`); it needs no key."""
        path = f"/v1/jobs/{_part(job_id)}/artifacts/{_part(name)}/links"
        return cast("Link", self._connection.send("POST", path, json={"ttl_seconds": ttl_seconds}).json())

    def download(
        self,
        job_id: str,
        folder: str | Path,
        *,
        names: Sequence[str] | None = None,
        on_bytes: downloads.OnBytes | None = None,
    ) -> list[Path]:
        """Fetch a job's files, all or those named, and check their SHA-256; goes on where it was cut.

        Raises:
            DownloadError: a name that the job does not have, or a file that does not arrive as it is.
        """
        return downloads.fetch(self._connection, self.artifacts(job_id), Path(folder), names, on_bytes)

    def upload(
        self,
        kind: str,
        name: str,
        *paths: str | Path,
        on_bytes: Callable[[str, int, int], None] | None = None,
    ) -> dict[str, Any]:
        """Send a model (a folder or its files), a calibration text or a suite; the completed upload.

        What the tenant has sent before is not sent again, and a cut transfer goes on where it was. Jobs name
        it as `{"source": "upload", "id": …}`.
        """
        return uploads.send(self._connection, kind, name, [Path(path) for path in paths], on_bytes)

    def cancel(self, job_id: str) -> Job:
        """Cancel a job: at once while it is queued, soon while it runs."""
        return cast("Job", self._connection.send("POST", f"/v1/jobs/{_part(job_id)}/cancel").json())

    def retry(self, job_id: str) -> Job:
        """Try a job again that failed, timed out, expired or was cancelled; never sent twice by itself."""
        path = f"/v1/jobs/{_part(job_id)}/retry"
        return cast("Job", self._connection.send("POST", path, again=False).json())

    def delete(self, job_id: str) -> None:
        """Delete an ended job with its files; never sent twice by itself."""
        self._connection.send("DELETE", f"/v1/jobs/{_part(job_id)}", again=False)

    def _get(self, path: str, params: Mapping[str, Any] | None = None) -> Any:
        answer = self._connection.send("GET", path, params=params)
        try:
            return answer.json()
        except json.JSONDecodeError:
            raise self._connection.unreachable(ValueError("what answers there is not this service")) from None


def _part(text: str) -> str:
    """Text as one segment of a path: a slash in it must not lead elsewhere."""
    return quote(text, safe="*")
