"""Bytes of artifacts over HTTP: ranges, conditions, digests; the same from a disk and from S3.

The bytes always go through this process: a redirect to the store would show its address, and break clients
that send the signed URL's permission nowhere else.
"""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from functools import partial

from fastapi import Request
from fastapi.responses import Response, StreamingResponse
from starlette.concurrency import iterate_in_threadpool, run_in_threadpool

from api.context import Services
from api.downloads.conditional import none_match
from api.downloads.ranges import ByteRange, RangeNotSatisfiableError, parse_range
from api.problem import Problem, not_found, problem_response, request_id_of
from jobs.artifacts import ArchivePlan, ArtifactStore
from jobs.rows import Artifact, Job

ARCHIVE = "*"
# an artifact that a browser opens must not run scripts with this site's rights (a bias report is HTML)
_SANDBOX = "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:"


@dataclass(frozen=True)
class Content:
    """Something to download: what it is, and how to read any part of it."""

    filename: str
    media_type: str
    size: int
    sha256: str
    open: Callable[[int, int], Iterator[bytes]]
    """(start, length) → the bytes; raises ArtifactMissingError before the first one if they are gone."""

    @property
    def etag(self) -> str:
        """A strong validator: the bytes' own hash."""
        return f'"sha256-{self.sha256}"'

    def headers(self) -> dict[str, str]:
        """What every answer about it says."""
        digest = base64.b64encode(bytes.fromhex(self.sha256)).decode()
        return {
            "ETag": self.etag,
            "Accept-Ranges": "bytes",
            "Repr-Digest": f"sha-256=:{digest}:",
            "Content-Disposition": f'attachment; filename="{self.filename}"',
            "Content-Security-Policy": _SANDBOX,
            "Cache-Control": "private, no-transform",
            "Referrer-Policy": "no-referrer",
        }


def file_content(store: ArtifactStore, artifact: Artifact) -> Content:
    """One artifact."""
    read = partial(store.open_range, artifact.storage, artifact.name)
    return Content(artifact.name, artifact.media_type, artifact.size, artifact.sha256, read)


def archive_content(store: ArtifactStore, job_id: str, whole: Artifact, files: list[Artifact]) -> Content:
    """One tar of all artifacts, put together while it is sent; its hash was computed at publication."""
    plan = ArchivePlan.of(files)
    read = partial(store.open_range, whole.storage)
    return Content(
        f"{job_id}.tar",
        "application/x-tar",
        whole.size,
        whole.sha256,
        lambda start, length: plan.read(start, length, read),
    )


def find_content(services: Services, job_id: str, name: str) -> Content:
    """An artifact by name, or the archive for `*`.

    Raises:
        Problem: 404 when the job has none of that name.
    """
    found = services.repository.get_artifact(job_id, name)
    if found is None:
        raise not_found("artifact")
    if name != ARCHIVE:
        return file_content(services.store, found)
    return archive_content(services.store, job_id, found, services.repository.list_artifacts(job_id))


async def artifact_response(services: Services, request: Request, job: Job, name: str) -> Response:
    """Answer a request for an artifact of a job that the caller may see."""
    return await respond(request, await run_in_threadpool(find_content, services, job.id, name))


async def archive_response(services: Services, request: Request, job: Job) -> Response:
    """Answer a request for all artifacts of a job in one tar."""
    return await artifact_response(services, request, job, ARCHIVE)


async def respond(request: Request, content: Content) -> Response:
    """200, 206, 304, 412 or 416 for one GET or HEAD (RFC 9110, sections 13 and 14)."""
    wanted = request.headers
    if "if-match" in wanted and not _strong_match(wanted["if-match"], content.etag):
        return _refused(request, content, 412, "precondition_failed", "The file is another one by now.")
    if none_match(wanted.get("if-none-match"), content.etag):
        return Response(status_code=304, headers=content.headers())
    if request.method == "HEAD":  # ranges are for GET alone
        headers = {**content.headers(), "Content-Length": str(content.size)}
        return Response(None, 200, headers, content.media_type)
    return await _send(request, content)


async def _send(request: Request, content: Content) -> Response:
    try:
        asked = parse_range(_range_header(request, content), content.size)
    except RangeNotSatisfiableError:
        return _refused(request, content, 416, "range_not_satisfiable", "The file has no such bytes.")
    if asked is None:
        return await _stream(content, ByteRange(0, content.size - 1), 200, content.headers())
    headers = {**content.headers(), "Content-Range": asked.content_range(content.size)}
    return await _stream(content, asked, 206, headers)


def _range_header(request: Request, content: Content) -> str | None:
    """The Range header, unless If-Range says that it was meant for other bytes."""
    condition = request.headers.get("if-range")
    if condition is not None and condition != content.etag:
        return None
    return request.headers.get("range")


def _strong_match(header: str, etag: str) -> bool:
    return header.strip() == "*" or etag in (part.strip() for part in header.split(","))


def _refused(request: Request, content: Content, status: int, code: str, detail: str) -> Response:
    headers = {"Content-Range": f"bytes */{content.size}"} if status == 416 else {}
    problem = Problem(status, code, detail, headers={**headers, "ETag": content.etag})
    return problem_response(problem, request_id_of(request))


async def _stream(content: Content, asked: ByteRange, status: int, headers: dict[str, str]) -> Response:
    first = await run_in_threadpool(content.open, asked.first, asked.length)
    headers = {**headers, "Content-Length": str(asked.length)}
    return StreamingResponse(_chunks(first), status, headers, content.media_type)


async def _chunks(opened: Iterator[bytes]) -> AsyncIterator[bytes]:
    """Read on the pool, a chunk at a time: a slow receiver holds no thread while it is slow."""
    async for chunk in iterate_in_threadpool(opened):
        yield chunk
