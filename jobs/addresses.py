"""How the addresses of the service's own parts are written: HTTP, and the embedded broker's socket."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path
from urllib.parse import quote

#: macOS allows 104 bytes for the path of a Unix socket, Linux 108, both with the closing NUL.
MAX_SOCKET_PATH = 103


def http_url(host: str, port: int) -> str:
    """The URL of an address; IPv6 addresses stand in brackets (RFC 3986)."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def socket_path(data_dir: Path) -> Path:
    """Where the broker's socket goes: the data folder, or the temporary folder if that path is too long.

    The fallback is named after the data folder, so that separately started commands (`doctor`, `worker`) find
    it, and is only accepted when it belongs to this user: anyone may create names in a temporary folder.
    """
    near = data_dir.resolve() / "broker" / "valkey.sock"
    if len(os.fsencode(near)) <= MAX_SOCKET_PATH:
        return near
    digest = hashlib.sha256(os.fsencode(data_dir.resolve())).hexdigest()[:16]
    far = Path(tempfile.gettempdir()) / f"optipfair-{os.getuid()}-{digest}" / "v.sock"
    if len(os.fsencode(far)) > MAX_SOCKET_PATH:
        far = Path("/tmp") / far.parent.name / far.name  # noqa: S108 - TMPDIR itself is too long
    return far


def socket_url(path: Path) -> str:
    """The URL by which Celery reaches a broker's socket."""
    return f"redis+socket://{quote(str(path))}"
