"""The service's secret: one file, from which every signing key is derived; two live ones for a rotation.

The file holds one secret a line. The first signs and verifies; a second, older one only verifies. To
rotate, put a new line on top; when the old links have expired and the old API keys are replaced, drop
the last line.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import secrets
from dataclasses import dataclass, field
from pathlib import Path

MIN_LENGTH = 32
MAX_LIVE = 2


@dataclass(frozen=True)
class DerivedKey:
    """A key for one purpose, and a short public id that says which secret it comes from."""

    id: str
    key: bytes = field(repr=False)


@dataclass(frozen=True)
class Secrets:
    """The live secrets, the newest first."""

    live: tuple[bytes, ...] = field(repr=False)

    def derive(self, purpose: str) -> tuple[DerivedKey, ...]:
        """One key a live secret, separate for each purpose ("links", "api-keys")."""
        keys = [
            hmac.new(secret, f"optipfair/{purpose}".encode(), hashlib.sha256).digest() for secret in self.live
        ]
        return tuple(DerivedKey(hashlib.sha256(key).hexdigest()[:8], key) for key in keys)


def ensure_secret(path: Path) -> None:
    """Make the secret file (0600) unless there is one; safe when several processes start at once."""
    if path.exists():
        return  # its folder need not be writable
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.link(draft, path)  # fails if another process was faster: its secret is the one
    except FileExistsError:
        pass
    finally:
        draft.unlink()


def load_secrets(path: Path) -> Secrets:
    """Read the live secrets; ValueError if the file is missing, too short, or holds more than two."""
    try:
        lines = [line.strip() for line in path.read_text().splitlines() if line.strip()]
    except OSError as error:
        raise ValueError(
            "the secret file cannot be read (the first start of `serve` or `api` makes it)"
        ) from error
    if not 1 <= len(lines) <= MAX_LIVE or any(len(line) < MIN_LENGTH for line in lines):
        raise ValueError(f"the secret file holds one or two lines of at least {MIN_LENGTH} characters")
    return Secrets(tuple(line.encode() for line in lines))


def new_webhook_secret() -> str:
    """A secret as Standard Webhooks writes it: `whsec_` and base64 of 32 random bytes."""
    return "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()
