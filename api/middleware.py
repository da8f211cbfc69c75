"""What surrounds every request: its id, the access log, metrics, safe headers, and limits on the body.

Plain ASGI, because a `BaseHTTPMiddleware` would put a task and two queues around each request and break
streaming.
"""

from __future__ import annotations

import re
import time
import uuid
from typing import Any

import structlog
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.observability import HttpMetrics
from api.problem import Problem, problem_response
from jobs.patience import begin_budget

MAX_BODY_BYTES = 1_000_000
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_TOKEN_IN_PATH = re.compile(r"(/v1/download/)[^/]+")
_SAFE_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
]
_API_CACHING = (b"cache-control", b"private, no-cache")
_FILE_OF_UPLOAD = re.compile(r"/v1/uploads/[^/]+/files/[^/]+")
_PROBES = {"/livez", "/readyz"}  # asked every second by something that does not read logs
_errors = structlog.get_logger("api.errors")


def redacted(path: str) -> str:
    """A path as it may stand in a log: the token of a signed link is a permission, so it is left out."""
    return _TOKEN_IN_PATH.sub(r"\1[redacted]", path)


class RequestContextMiddleware:
    """Outermost: gives the request an id, logs it, measures it, and turns a crash into a bare 500."""

    def __init__(self, app: ASGIApp, metrics: HttpMetrics) -> None:
        self.app, self.metrics = app, metrics
        # bound once: made when the first request comes, after the entry point has set up the logging
        self._access = structlog.get_logger("api.access").bind()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: D102 - ASGI
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        exchange = _Exchange(scope, send)
        try:
            if "\x00" in scope["path"]:  # no name holds one, and Postgres takes none
                problem = Problem(404, "not_found", "There is no such resource.")
                await problem_response(problem, exchange.request_id)(scope, receive, exchange.send)
                return
            await self.app(scope, receive, exchange.send)
        except Exception as error:
            await self._crashed(exchange, error, scope, receive)
        finally:
            self._record(exchange)

    async def _crashed(self, exchange: _Exchange, error: Exception, scope: Scope, receive: Receive) -> None:
        _errors.error("unhandled_error", request_id=exchange.request_id, exc_info=error)
        if exchange.status is None:
            problem = Problem(
                500, "internal_error", "The service failed; quote the request_id to its operator."
            )
            await problem_response(problem, exchange.request_id)(scope, receive, exchange.send)

    def _record(self, exchange: _Exchange) -> None:
        seconds = time.perf_counter() - exchange.started
        status = exchange.status or 499  # the caller left before an answer began
        self.metrics.observe(exchange.scope["method"], exchange.route, status, seconds)
        log = self._access.debug if exchange.scope["path"] in _PROBES else self._access.info
        log(
            "request",
            request_id=exchange.request_id,
            method=exchange.scope["method"],
            path=redacted(exchange.scope["path"]),
            status=status,
            ms=round(seconds * 1000, 2),
            key_id=exchange.scope.get("key_id"),
        )


class _Exchange:
    """One request and the status of its answer, as the outermost middleware sees them go by."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self.scope, self._send = scope, send
        self.started = time.perf_counter()
        self.status: int | None = None
        self._budget = begin_budget()
        given = Headers(scope=scope).get("x-request-id", "")
        self.request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        scope["request_id"] = self.request_id

    @property
    def route(self) -> str:
        """The route's template: a job id or a token as a metric label would have no bound."""
        found: Any = self.scope.get("route")
        return getattr(found, "path", None) or "unmatched"

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self._budget.lift()  # an answer has begun; a stream may last for hours
            headers = message.setdefault("headers", [])
            present = {name.lower() for name, _ in headers}
            headers.append((b"x-request-id", self.request_id.encode()))
            headers.extend(pair for pair in _SAFE_HEADERS if pair[0] not in present)
            for name, value in self.scope.get(
                "extra_headers", {}
            ).items():  # RateLimit, set by authentication
                if name.lower().encode() not in present:
                    headers.append((name.lower().encode(), value.encode()))
            if _API_CACHING[0] not in present:
                headers.append(_API_CACHING)
        await self._send(message)


class BodyLimitMiddleware:
    """Holds bodies to 1 MB (413); nothing is read before a handler asks for it, having checked the key.

    A file of an upload is held to its declared size instead, by its handler.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: D102 - ASGI
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self.app(scope, receive, send)
            return
        body = _Body(scope, receive, send)
        await self.app(scope, body.receive, body.send)


class _Body:
    """One request's body, given to the app in one piece when it first asks; a file as it comes."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._receive, self._send = receive, send
        declared = Headers(scope=scope).get("content-length", "")
        self._declared = int(declared[:32]) if declared.isascii() and declared.isdigit() else None
        self._chunked = "transfer-encoding" in Headers(scope=scope)
        self._streamed = scope["method"] == "PUT" and _FILE_OF_UPLOAD.fullmatch(scope["path"]) is not None
        self._read = False

    async def receive(self) -> Message:
        """The whole body, then what the server says (a disconnect).

        Raises:
            Problem: 413 for a body above the limit; a declared length is believed before a byte is read.
        """
        if self._read:
            return await self._receive()
        if self._streamed:
            message = await self._receive()
            self._read = not message.get("more_body", False)
            return message
        if (self._declared or 0) > MAX_BODY_BYTES:
            raise _too_large()
        chunks: list[bytes] = []
        size, more = 0, True
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                return message
            chunks.append(message.get("body", b""))
            size += len(chunks[-1])
            if size > MAX_BODY_BYTES:
                raise _too_large()
            more = message.get("more_body", False)
        self._read = True
        return {"type": "http.request", "body": b"".join(chunks), "more_body": False}

    async def send(self, message: Message) -> None:
        """Close the connection behind an answer to a long body that nobody read."""
        if message["type"] == "http.response.start" and not self._read and self._is_long:
            headers = message.setdefault("headers", [])
            if not any(name.lower() == b"connection" for name, _ in headers):
                headers.append((b"connection", b"close"))
        await self._send(message)

    @property
    def _is_long(self) -> bool:
        # the server would have to read all of it before the connection could be used again
        return self._chunked or (self._declared or 0) > MAX_BODY_BYTES


def _too_large() -> Problem:
    detail = f"A request body may have {MAX_BODY_BYTES} bytes, no more."
    return Problem(413, "body_too_large", detail)
