"""The public keys of issuers: by OpenID Connect discovery, over the guard against requests into the inside.

Keys are kept for five minutes. A token that names a key which is not among them makes them be fetched again,
so that an issuer may rotate at any time; how often is bounded, because anyone may send such tokens.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from pydantic_core import from_json

from api.background.egress import EgressRefusedError, fetch, make_client
from api.ratelimit import RateLimiter

if TYPE_CHECKING:
    from joserfc.jwk import ECKey, RSAKey

KEEP_SECONDS = 300.0
FETCHES_PER_MINUTE = 20
MAX_BYTES = 1_000_000
MIN_RSA_BITS = 2048
Key: TypeAlias = "RSAKey | ECKey"


class IssuerFaultError(Exception):
    """What the issuer publishes can't be used; the message names no address."""


class IssuerAwayError(Exception):
    """The issuer does not answer; later it may."""


@dataclass(frozen=True)
class _Known:
    until: float
    keys: Mapping[str | None, Key]


class Issuers:
    """Keys by issuer.

    Args:
        allow_loopback: lets issuers be on this machine, for development.
        clock: monotonic seconds.
    """

    def __init__(self, *, allow_loopback: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self._allow_loopback, self._clock = allow_loopback, clock
        self._known: dict[str, _Known] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._fetches = RateLimiter(FETCHES_PER_MINUTE)

    async def key(self, issuer: str, key_id: str | None) -> Key:
        """The issuer's key of this id; without an id the only one there is.

        Raises:
            IssuerFaultError: there is no such key, or what the issuer publishes can't be used.
            IssuerAwayError: it does not answer, or was asked too often.
        """
        known = self._known.get(issuer)
        if known is None or known.until < self._clock() or key_id not in known.keys:
            known = await self._renewed(issuer, known, key_id)
        if key_id not in known.keys:
            raise IssuerFaultError("the issuer has no such key")
        return known.keys[key_id]

    async def _renewed(self, issuer: str, stale: _Known | None, key_id: str | None) -> _Known:
        async with self._locks.setdefault(issuer, asyncio.Lock()):
            known = self._known.get(issuer)
            if known is not None and known is not stale and key_id in known.keys:
                return known  # another request has fetched it meanwhile
            if not self._fetches.take(issuer, now=self._clock()).allowed:
                raise IssuerAwayError("the issuer's keys were asked for too often; try again in a minute")
            known = _Known(self._clock() + KEEP_SECONDS, usable_keys(await self._published(issuer)))
            self._known[issuer] = known
            return known

    async def _published(self, issuer: str) -> Any:
        document = await self._json(f"{issuer}/.well-known/openid-configuration")
        if document.get("issuer") != issuer:
            raise IssuerFaultError("the issuer's configuration is that of another issuer")
        where = document.get("jwks_uri")
        if not isinstance(where, str):
            raise IssuerFaultError("the issuer's configuration names no jwks_uri")
        return await self._json(where)

    async def _json(self, url: str) -> dict[str, Any]:
        import httpx  # see make_client

        try:
            async with make_client() as client:
                status, body = await fetch(
                    client, url, allow_loopback=self._allow_loopback, limit_bytes=MAX_BYTES
                )
        except EgressRefusedError as error:
            raise IssuerFaultError(f"the issuer's keys can't be fetched: {error}") from None
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError, ValueError):
            raise IssuerAwayError("the issuer does not answer") from None
        if status >= 500 or status == 429:
            raise IssuerAwayError("the issuer does not answer")
        return _object(status, body)


def _object(status: int, body: bytes) -> dict[str, Any]:
    if 300 <= status < 400:
        raise IssuerFaultError("the issuer redirects to where its keys are; redirects are not followed")
    try:
        document = from_json(body, allow_inf_nan=False) if status == 200 else None
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise IssuerFaultError("the issuer does not publish its keys as OpenID Connect says")
    return document


def usable_keys(document: Mapping[str, Any]) -> Mapping[str | None, Key]:
    """Keys by id, of those that may verify RS256 or ES256; under None the only one, if there is one."""
    found: dict[str | None, Key] = {}
    listed = document.get("keys")
    for item in listed if isinstance(listed, list) else []:
        key = _usable(item)
        if key is not None:
            found[item.get("kid") if isinstance(item.get("kid"), str) else None] = key
    if len(found) == 1:
        found[None] = next(iter(found.values()))
    elif len([key for key in found if key is not None]) > 1:
        found.pop(None, None)
    return found


def _usable(item: Any) -> Key | None:
    if not isinstance(item, dict) or item.get("use", "sig") != "sig" or "d" in item:
        return None
    # loaded when the first token comes: a tenth of the time that the API takes to start
    from joserfc.errors import JoseError
    from joserfc.jwk import ECKey, RSAKey

    try:
        if item.get("kty") == "RSA" and item.get("alg", "RS256") == "RS256":
            key = RSAKey.import_key(_public(item, "n", "e"))
            return key if key.public_key.key_size >= MIN_RSA_BITS else None
        if item.get("kty") == "EC" and item.get("crv") == "P-256" and item.get("alg", "ES256") == "ES256":
            return ECKey.import_key(_public(item, "crv", "x", "y"))
    except (JoseError, ValueError, TypeError):
        return None
    return None


def _public(item: Mapping[str, Any], *names: str) -> Any:
    """The public parts alone: what else stands in a key has no say."""
    return {"kty": item["kty"], **{name: item.get(name) for name in names}}
