"""Outgoing requests that can't be turned against the network that this service runs in (SSRF).

They go to webhooks and to the issuers of tokens.

A name is resolved once, every address must be globally routable, and the connection goes to the address that
was checked: a second resolution could give another answer (DNS rebinding). Nothing is redirected, no proxy of
the environment is used, and 15 s bound the whole exchange.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Mapping
from typing import TYPE_CHECKING

from jobs.errors import InvalidError
from jobs.webhooks import check_url, is_public

if TYPE_CHECKING:
    import httpx

TIMEOUT_SECONDS = 15.0


class EgressRefusedError(Exception):
    """An address that may not be called; the text says why, without naming the address."""


async def resolve(host: str, port: int, *, allow_loopback: bool = False) -> str:
    """Resolve once and return one address; refused when any of the answers is not routable.

    Raises:
        EgressRefusedError: the name does not resolve, or resolves into a network that is not public.
    """
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise EgressRefusedError("the host name does not resolve") from None
    addresses = [ipaddress.ip_address(str(info[4][0]).partition("%")[0]) for info in found]
    for address in addresses:
        if not is_public(address) and not (allow_loopback and address.is_loopback):
            raise EgressRefusedError("the host resolves to an address that is not globally routable")
    if not addresses:
        raise EgressRefusedError("the host name does not resolve")
    return str(addresses[0])


async def post(
    client: httpx.AsyncClient, url: str, body: bytes, headers: Mapping[str, str], *, allow_loopback: bool
) -> int:
    """POST to a webhook and return the status; the answer's body is not read.

    Raises:
        EgressRefusedError: the URL may not be called.
        httpx.HTTPError, TimeoutError: it could not be.
    """
    async with asyncio.timeout(TIMEOUT_SECONDS):
        request = await _request(client, "POST", url, "webhook URL", allow_loopback, body=body)
        request.headers.update(headers)
        response = await client.send(request, stream=True, follow_redirects=False)
        await response.aclose()
        return response.status_code


async def fetch(
    client: httpx.AsyncClient, url: str, *, allow_loopback: bool, limit_bytes: int
) -> tuple[int, bytes]:
    """GET something small: the status and the body.

    Raises:
        EgressRefusedError: the URL may not be called, or the answer is larger than the limit.
        httpx.HTTPError, TimeoutError: it could not be.
    """
    async with asyncio.timeout(TIMEOUT_SECONDS):
        request = await _request(client, "GET", url, "URL", allow_loopback)
        response = await client.send(request, stream=True, follow_redirects=False)
        try:
            body = b""
            async for chunk in response.aiter_bytes():
                body += chunk
                if len(body) > limit_bytes:
                    raise EgressRefusedError("the answer is too large")
        finally:
            await response.aclose()
        return response.status_code, body


async def _request(
    client: httpx.AsyncClient, method: str, url: str, what: str, allow_loopback: bool, **content: bytes
) -> httpx.Request:
    """A request to the address that the host's name stands for, if that may be called."""
    try:
        check_url(url, what=what, code="url_refused", allow_loopback=allow_loopback)
    except InvalidError as error:
        raise EgressRefusedError(error.message) from None
    request = client.build_request(method, url, content=content.get("body"))
    target = request.url
    port = target.port or (443 if target.scheme == "https" else 80)
    address = await resolve(target.host, port, allow_loopback=allow_loopback)
    request.url = target.copy_with(host=address, port=port)
    request.headers["Host"] = target.netloc.decode("ascii")
    request.extensions["sni_hostname"] = target.host  # the certificate is checked against the name
    return request


def make_client() -> httpx.AsyncClient:
    """An HTTP client for such requests: no proxy from the environment, no redirects, no kept connections."""
    import httpx  # takes a tenth of a second, which a process that only answers need not spend

    limits = httpx.Limits(max_connections=20, max_keepalive_connections=0)
    return httpx.AsyncClient(trust_env=False, follow_redirects=False, timeout=TIMEOUT_SECONDS, limits=limits)
