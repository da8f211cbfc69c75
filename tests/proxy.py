"""A TCP proxy between the service and a neighbour that can do what networks do to connections.

It listens on a port of its own on the loopback. Modes:

* `pass`: bytes flow.
* `refuse`: nobody listens, and what was connected is reset.
* `stall`: connections are accepted, no byte flows, nothing closes; with `pass` again the bytes go on, as
  those of a process that was frozen.
* `half-open`: bytes are taken and dropped. What was connected meanwhile stays dead for ever, without being
  closed, as after a router that forgot it.
* `slow`: each answer comes late, by half a second unless `slow_seconds` says otherwise.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Mode = Literal["pass", "refuse", "stall", "half-open", "slow"]
Upstream = Path | tuple[str, int]
SLOW_SECONDS = 0.5
_CHUNK = 65536


@dataclass(eq=False)
class _Link:
    """One connection of a client and the one to the neighbour behind it."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter | None = None
    dead: bool = False

    def reset(self) -> None:
        for writer in (self.client, self.server):
            if writer is not None:
                writer.transport.abort()


@dataclass
class Proxy:
    """Run with `proxy(upstream)`; set a mode with `be`."""

    upstream: Upstream
    port: int = 0
    mode: Mode = "pass"
    slow_seconds: float = SLOW_SECONDS
    _links: set[_Link] = field(default_factory=set)
    _server: asyncio.Server | None = None
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def be(self, mode: Mode) -> None:
        """Change the mode, for what is connected and for what will be."""
        self._wait_for(self._set(mode))

    @contextmanager
    def being(self, mode: Mode) -> Iterator[None]:
        """That mode for as long as the context lasts, then `pass`."""
        self.be(mode)
        try:
            yield
        finally:
            self.be("pass")

    def start(self) -> None:
        """Listen, on a thread of its own."""
        threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True).start()
        self._wait_for(self._listen())

    def stop(self) -> None:
        """Reset everything and stop listening."""
        self.be("refuse")
        self._wait_for(self._settle())
        self._loop.call_soon_threadsafe(self._loop.stop)

    def _wait_for(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _settle(self) -> None:
        """Let what was reset come to its end, for a second at most."""
        for _ in range(50):
            if not self._links:
                return
            await asyncio.sleep(0.02)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _set(self, mode: Mode) -> None:
        self.mode = mode
        if mode == "refuse":
            if self._server is not None:
                self._server.close()
                self._server = None
            for link in list(self._links):
                link.reset()
        elif self._server is None:
            await self._listen()
        if mode == "half-open":
            for link in self._links:
                link.dead = True
        self._changed.set()
        self._changed = asyncio.Event()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = _Link(writer, dead=self.mode == "half-open")
        self._links.add(link)
        try:
            await self._may_flow(link)
            if link.dead:
                await self._swallow(reader)
                return
            there, link.server = await self._connect()
            await asyncio.gather(
                self._pump(link, reader, link.server, answers=False),
                self._pump(link, there, writer, answers=True),
            )
        except OSError:
            return  # the neighbour is away: the client sees its connection closed
        finally:
            link.reset()
            self._links.discard(link)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if isinstance(self.upstream, Path):
            return await asyncio.open_unix_connection(str(self.upstream))
        return await asyncio.open_connection(*self.upstream)

    async def _may_flow(self, link: _Link) -> None:
        while self.mode == "stall" and not link.dead:
            await self._changed.wait()

    async def _pump(
        self, link: _Link, source: asyncio.StreamReader, target: asyncio.StreamWriter, *, answers: bool
    ) -> None:
        while data := await source.read(_CHUNK):
            if self.mode == "slow" and answers:
                await asyncio.sleep(self.slow_seconds)
            await self._may_flow(link)
            if link.dead:
                await self._swallow(source)
                return
            target.write(data)
            await target.drain()
        await self._may_flow(link)  # a closing is held back as bytes are
        if not link.dead:
            with suppress(OSError, RuntimeError):
                target.close()

    async def _swallow(self, reader: asyncio.StreamReader) -> None:
        """Take and drop bytes until the client itself gives up."""
        with suppress(OSError):
            while await reader.read(_CHUNK):
                pass


@contextmanager
def proxy(upstream: Upstream) -> Iterator[Proxy]:
    """A proxy to a Unix socket or a TCP address, gone at the end."""
    made = Proxy(upstream)
    made.start()
    try:
        yield made
    finally:
        made.stop()


def answers(port: int) -> bool:
    """Whether somebody listens on a port of the loopback."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
