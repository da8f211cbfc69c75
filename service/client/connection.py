"""Requests that survive a dropped connection, a restart of the service and its wish to be asked later."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from service.client.errors import ClientError, RefusedError, UnreachableError

LATER = frozenset({429, 502, 503, 504})
"""Answers of a service, or of what stands before it, that will answer otherwise in a while."""
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 10.0


class Patience:
    """How long something is tried again; every success renews it.

    Args:
        seconds: how long after the first failure.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.renew()

    def renew(self) -> None:
        """There was a success: the next failure is a first one."""
        self._since: float | None = None
        self._pause = FIRST_PAUSE

    def pause(self, asked: float | None = None) -> bool:
        """Sleep before another try, as long as the service asked for; False when that takes too long."""
        now = time.monotonic()
        self._since = now if self._since is None else self._since
        seconds = self._pause if asked is None else asked
        if now + seconds - self._since > self._seconds:
            return False
        time.sleep(seconds)
        self._pause = min(self._pause * 2, LONGEST_PAUSE)
        return True


class Connection:
    """One service and one key.

    Args:
        url: where the service is, e.g. `https://optipfair.example.org`.
        key: an API key, `ofk_…`.
        timeout: seconds to wait for an answer that is not held on purpose.
        first_patience: seconds that a service which never answered yet is tried.
        patience: seconds that one which answered before is tried.
        transport: another way to send requests, for tests.

    Raises:
        ClientError: the URL or the key can't be one.
    """

    def __init__(
        self,
        url: str,
        key: str,
        *,
        timeout: float = 30.0,
        first_patience: float = 5.0,
        patience: float = 300.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.url = _checked_url(url)
        self._timeout = timeout
        self._first_patience, self._patience = first_patience, patience
        self._reached = False
        headers = {"Authorization": f"Bearer {_checked_key(key)}", "User-Agent": "optipfair-service"}
        self._http = httpx.Client(base_url=self.url, headers=headers, timeout=timeout, transport=transport)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def patience(self) -> Patience:
        """A new measure of patience."""
        return Patience(self._patience if self._reached else self._first_patience)

    def send(
        self, method: str, path: str, *, again: bool = True, held: float = 0.0, **options: Any
    ) -> httpx.Response:
        """One request, tried again over dropped connections and answers that ask to come later.

        Args:
            method: GET, POST or DELETE.
            path: begins with a slash.
            again: False for a request that must not be sent twice.
            held: seconds that the service may hold the answer.
            options: as httpx takes them.

        Raises:
            RefusedError: the answer is an error.
            UnreachableError: there was none.
        """
        timeout = httpx.Timeout(self._timeout, read=self._timeout + held)
        patience = self.patience()
        while True:
            try:
                response = self._http.request(method, path, timeout=timeout, **options)
            except httpx.TransportError as error:
                if not again or not patience.pause():
                    raise self.unreachable(error) from None
                continue
            self._reached = True
            if not _wants_later(response) or not again or not patience.pause(asked(response.headers)):
                return checked(response)

    @contextmanager
    def stream(self, path: str, headers: Mapping[str, str]) -> Iterator[httpx.Response]:
        """A GET whose body is read piece by piece, with whatever status; httpx' errors come through."""
        with self._http.stream("GET", path, headers=dict(headers)) as response:
            self._reached = True
            yield response

    def unreachable(self, error: Exception) -> UnreachableError:
        """What a transport error means to a person."""
        reason = str(error) or type(error).__name__
        return UnreachableError(f"no answer from {self.url}: {reason}")


def _wants_later(response: httpx.Response) -> bool:
    """Whether the same request will be answered otherwise in a while.

    A 409 that says when to come again is of an Idempotency-Key whose first request is still being answered.
    """
    in_flight = response.status_code == httpx.codes.CONFLICT and "Retry-After" in response.headers
    return in_flight or response.status_code in LATER


def checked(response: httpx.Response) -> httpx.Response:
    """The response, unless it is an error.

    Raises:
        RefusedError: for 3xx (but 304), 4xx and 5xx.
    """
    if response.status_code == 304 or response.is_success:
        return response
    try:
        document = response.json()
    except ValueError:
        document = None
    if not isinstance(document, dict):
        document = {"detail": response.reason_phrase}
    raise RefusedError(response.status_code, document)


def asked(headers: Mapping[str, str]) -> float | None:
    """Seconds that Retry-After asks for (RFC 9110, section 10.2.3); None without one."""
    text = headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return max((moment - datetime.now(UTC)).total_seconds(), 0.0)


def _checked_url(url: str) -> str:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ClientError(f"{url!r} is no URL: {error}") from None
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ClientError(f"the service's URL begins with http:// or https://, not {url!r}")
    return url.rstrip("/")


def _checked_key(key: str) -> str:
    stripped = key.strip()
    if not stripped or not stripped.isascii() or not stripped.isprintable():
        raise ClientError("an API key is needed: OPTIPFAIR_KEY or --key, as ofk_…")
    return stripped
