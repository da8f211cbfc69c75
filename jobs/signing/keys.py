"""API keys: random, shown once, stored as an HMAC under the service's secret."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass, field

from jobs.signing.secret import Secrets

PREFIX = "ofk_"
SCOPES = ("jobs:read", "jobs:write", "admin")
_SHAPE = re.compile(r"ofk_[A-Za-z0-9_-]{43}")


@dataclass(frozen=True)
class NewKey:
    """A fresh key: `plain` for its owner, `hash` for the database, `hint` to tell keys apart."""

    plain: str = field(repr=False)
    hash: str
    hint: str


def generate_key(live: Secrets) -> NewKey:
    """A new key of 256 random bits."""
    plain = PREFIX + secrets.token_urlsafe(32)
    return NewKey(plain=plain, hash=key_hashes(plain, live)[0], hint=plain[-4:])


def key_hashes(plain: str, live: Secrets) -> list[str]:
    """The HMACs to look a presented key up by, one a live secret; empty if it is not shaped like a key."""
    if _SHAPE.fullmatch(plain) is None:
        return []
    return [hmac.new(key.key, plain.encode(), hashlib.sha256).hexdigest() for key in live.derive("api-keys")]
