"""What a job's attempts said: as text, or followed line by line over dropped connections."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from urllib.parse import urlencode

import httpx

from service.client.connection import LATER, Connection, asked, checked

_STREAM = "text/event-stream"


def query(attempt: int | None, tail: int | None) -> str:
    """The part of a URL that says which lines."""
    given = {name: value for name, value in (("attempt", attempt), ("tail", tail)) if value is not None}
    return f"?{urlencode(given)}" if given else ""


def follow(
    connection: Connection, path: str, attempt: int | None, tail: int | None, over: Callable[[], bool]
) -> Iterator[str]:
    """The lines as they come, each once; ends when a stream has ended and `over` says that none follows.

    Args:
        connection: the service.
        path: of the logs.
        attempt: only this one's.
        tail: at most so many of the lines that are there already.
        over: whether the job, or the attempt, has ended.

    Raises:
        RefusedError, UnreachableError: as for any request.
    """
    last, patience = "", connection.patience()
    while True:
        headers = {"Accept": _STREAM} | ({"Last-Event-ID": last} if last else {})
        wait, error = None, None
        try:
            # the lines after a known one are wanted whole, however few were wanted of the first
            with connection.stream(path + query(attempt, None if last else tail), headers) as response:
                wait = asked(response.headers) if response.status_code in LATER else None
                if response.is_error:
                    response.read()
                    if response.status_code not in LATER:
                        checked(response)
                for number, line in events(response.iter_bytes() if response.is_success else ()):
                    patience.renew()
                    last = number or last
                    yield line
                if response.is_success and over():
                    return
        except httpx.TransportError as cut:
            error = cut
        if not patience.pause(wait):
            raise connection.unreachable(error or ConnectionError("the stream is cut off again and again"))


def events(chunks: Iterable[bytes]) -> Iterator[tuple[str, str]]:
    """The id and the data of each server-sent event; comments and the time to wait are left out."""
    number, data = "", list[str]()
    for line in _lines(chunks):
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "id":
            number = value
        elif name == "data":
            data.append(value)
        elif not line and data:
            yield number, "\n".join(data)
            data = []


def _lines(chunks: Iterable[bytes]) -> Iterator[str]:
    """Whole lines: those that line feeds end, and not what else looks like an end of line."""
    rest = b""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            yield line.removesuffix(b"\r").decode(errors="replace")
