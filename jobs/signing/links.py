"""Signed download links: whoever has one may fetch one file of one job until it expires, nothing else.

A token is `base64url(payload).base64url(HMAC-SHA256)`. The payload says method class, job, artifact, the
artifact's SHA-256, tenant, key id and expiry, so a link cannot be turned into another one, dies with the
job, and serves no other bytes than those it was made for.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
from dataclasses import asdict, dataclass

from jobs.errors import LinkExpiredError, LinkInvalidError
from jobs.signing.secret import Secrets

READ = "read"
"""The method class of GET and HEAD."""
MAX_TOKEN_LENGTH = 1024


@dataclass(frozen=True)
class Grant:
    """What a link permits. `expires_at` in seconds since the epoch."""

    method: str
    job_id: str
    name: str
    sha256: str
    tenant: str
    key_id: str
    expires_at: int


class LinkSigner:
    """Signs with the newest secret, and verifies with every live one."""

    def __init__(self, secrets: Secrets) -> None:
        self._keys = secrets.derive("links")

    def sign(self, *, job_id: str, name: str, sha256: str, tenant: str, expires_at: int) -> str:
        """A token for one artifact (`*`: the archive) until `expires_at` (seconds since the epoch)."""
        key = self._keys[0]
        grant = Grant(READ, job_id, name, sha256, tenant, key.id, expires_at)
        payload = json.dumps(list(asdict(grant).values()), separators=(",", ":")).encode()
        return f"{_encode(payload)}.{_encode(_mac(key.key, payload))}"

    def verify(self, token: str, *, now: int, method: str = READ) -> Grant:
        """What the token permits; LinkInvalidError if forged or altered, LinkExpiredError if late.

        `now` in seconds since the epoch. The signature is compared in constant time, and before anything
        in the payload is believed.
        """
        payload, signature = _split(token)
        matches = [hmac.compare_digest(_mac(key.key, payload), signature) for key in self._keys]
        if True not in matches:
            raise LinkInvalidError("the link was altered, or is not one of this service's")
        grant = Grant(*json.loads(payload))
        if grant.method != method or grant.key_id not in {key.id for key in self._keys}:
            raise LinkInvalidError("the link does not permit this")
        if grant.expires_at <= now:
            raise LinkExpiredError("the link has expired; make a new one")
        return grant


def _split(token: str) -> tuple[bytes, bytes]:
    head, dot, tail = token.partition(".")
    if not dot or len(token) > MAX_TOKEN_LENGTH:
        raise LinkInvalidError("the link is not complete")
    payload, signature = _decode(head), _decode(tail)
    # base64 can spell the same bytes in several ways; only the one that was given out is a link.
    if _encode(payload) != head or _encode(signature) != tail:
        raise LinkInvalidError("the link was altered")
    return payload, signature


def _mac(key: bytes, payload: bytes) -> bytes:
    return hmac.new(key, payload, hashlib.sha256).digest()


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decode(text: str) -> bytes:
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise LinkInvalidError("the link was altered") from error
