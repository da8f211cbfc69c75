"""Outgoing webhook requests that can't be turned against the network this service runs in (SSRF).

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
from jobs.webhooks import check_webhook_url, is_public

if TYPE_CHECKING:
    import httpx

TIMEOUT_SECONDS = 15.0


class EgressRefusedError(Exception):
    """An address that webhooks may not go to; the text says why, without naming the address."""


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
    try:
        check_webhook_url(url, allow_loopback=allow_loopback)
    except InvalidError as error:
        raise EgressRefusedError(error.message) from None
    target = client.build_request("POST", url).url
    port = target.port or (443 if target.scheme == "https" else 80)
    async with asyncio.timeout(TIMEOUT_SECONDS):
        address = await resolve(target.host, port, allow_loopback=allow_loopback)
        request = client.build_request(
            "POST",
            target.copy_with(host=address, port=port),
            content=body,
            headers={**headers, "Host": target.netloc.decode("ascii")},
            extensions={"sni_hostname": target.host},  # the certificate is checked against the name
        )
        response = await client.send(request, stream=True, follow_redirects=False)
        await response.aclose()
        return response.status_code


def make_client() -> httpx.AsyncClient:
    """An HTTP client for webhooks: no proxy from the environment, no redirects, no kept connections."""
    import httpx  # takes a tenth of a second, which a process that only answers need not spend

    limits = httpx.Limits(max_connections=20, max_keepalive_connections=0)
    return httpx.AsyncClient(trust_env=False, follow_redirects=False, timeout=TIMEOUT_SECONDS, limits=limits)
