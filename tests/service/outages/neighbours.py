"""A service whose broker, database and artifact store each stand behind a proxy, and what may befall them."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from tests import servers
from tests.proxy import Proxy, proxy
from tests.service.harness import running
from tests.service.outages.scenes import TIMES, Scene
from tests.tiny import write_tiny_llama

NEIGHBOURS = ("broker", "postgres", "s3")
#: `killed` and `frozen` happen to the server, the others to what lies between (see `tests.proxy`).
FAULTS = ("killed", "frozen", "refuse", "stall", "half-open", "slow")


@dataclass(kw_only=True)
class Neighbourhood(Scene):
    """The service and its neighbours."""

    proxies: dict[str, Proxy]
    postgres: servers.Postgres
    valkey: servers.Valkey
    s3: servers.S3

    @contextmanager
    def away(self, what: str, fault: str) -> Iterator[None]:
        """The fault of that neighbour, for as long as the context lasts."""
        if fault == "killed" and what == "s3":
            fault = "refuse"  # the stand-in keeps its objects in memory: killed in truth, it would lose them
        if fault == "killed":
            server = self.postgres if what == "postgres" else self.valkey
            # Postgres' way of crashing: killed by signal 9, its children would go on for a while
            server.stop(signal.SIGQUIT if what == "postgres" else signal.SIGKILL)
            try:
                yield
            finally:
                server.start()
        elif fault == "frozen":
            with _frozen(self._pids(what)):
                yield
        else:
            with self.proxies[what].being(fault):  # type: ignore[arg-type]
                yield

    def _pids(self, neighbour: str) -> list[int]:
        process = {"postgres": self.postgres.process, "broker": self.valkey.process}.get(neighbour)
        top = self.s3.pid if process is None else process.pid
        return [top, *(child.pid for child in psutil.Process(top).children(recursive=True))]


@contextmanager
def _frozen(pids: list[int]) -> Iterator[None]:
    for pid in pids:
        _send(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            _send(pid, signal.SIGCONT)


def _send(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


@contextmanager
def neighbourhood(home: Path) -> Iterator[Neighbourhood]:
    """Everything started and ready, gone at the end."""
    data_dir = home / "data"
    write_tiny_llama(data_dir / "models" / "tiny")
    with ExitStack() as stack:
        postgres = stack.enter_context(servers.postgres_server())
        valkey = stack.enter_context(servers.valkey())
        s3 = stack.enter_context(servers.s3_server())
        upstreams = {
            "broker": valkey.socket,
            "postgres": postgres.home / ".s.PGSQL.5432",
            "s3": ("127.0.0.1", urlsplit(s3.endpoint).port or 0),
        }
        proxies = {name: stack.enter_context(proxy(there)) for name, there in upstreams.items()}
        service = stack.enter_context(running(data_dir, **_environment(proxies, s3)))
        made = Neighbourhood(service, proxies=proxies, postgres=postgres, valkey=valkey, s3=s3)
        made.warm_up()
        yield made


def _environment(proxies: dict[str, Proxy], s3: servers.S3) -> dict[str, str]:
    return {
        "OPTIPFAIR_DATABASE_URL": f"postgresql://postgres@127.0.0.1:{proxies['postgres'].port}/postgres",
        "OPTIPFAIR_BROKER_URL": f"redis://127.0.0.1:{proxies['broker'].port}/0",
        "OPTIPFAIR_ARTIFACTS_URL": f"s3://{s3.bucket}/prefix",
        "OPTIPFAIR_ARTIFACTS_S3_ENDPOINT": f"http://127.0.0.1:{proxies['s3'].port}",
        "OPTIPFAIR_ARTIFACTS_S3_ACCESS_KEY": s3.access_key,
        "OPTIPFAIR_ARTIFACTS_S3_SECRET_KEY": s3.secret_key,
        **TIMES,
    }
