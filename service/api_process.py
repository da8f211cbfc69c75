"""The HTTP process: uvicorn on an address of its own, or on a socket inherited from `serve`."""

from __future__ import annotations

import argparse
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Sequence

import uvicorn

from jobs.handover import FROM_STDIN, settings_of_process
from jobs.settings import Settings


class Server(uvicorn.Server):
    """uvicorn, which lets held requests go before it waits for them.

    Left alone, it waits for long polls and event streams as for any other request, and cuts them off (as a
    bare 500) when its patience is over: the application learns of the end only after that.

    Args:
        config: uvicorn's.
        release: ends the waiting of held requests; each then gets the answer of its time-out.
    """

    def __init__(self, config: uvicorn.Config, release: Callable[[], Awaitable[None]]) -> None:
        super().__init__(config)
        self._release = release

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Release, then shut down; a request that still comes in does not wait any more."""
        await self._release()
        await super().shutdown(sockets)


def run_api(settings: Settings, descriptor: int | None = None) -> None:
    """Serve until SIGTERM or Ctrl-C.

    Access is logged by the application, which redacts the tokens of download links; uvicorn's own log would
    not.
    """
    from api.main import create_app
    from jobs.logs import configure_logging

    configure_logging(settings, "api")
    logging.getLogger("alembic").setLevel(logging.WARNING)  # /readyz asks it for the version at each call
    app = create_app(settings)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=5,
        log_config=None,
        log_level="warning",
    )
    server = Server(config, app.state.services.notifier.close)
    if descriptor is None:
        server.run()
    else:
        with socket.socket(fileno=os.dup(descriptor)) as listener:
            server.run(sockets=[listener])


def main(arguments: Sequence[str] | None = None) -> None:
    """`python -m service.api_process`, as `serve` starts it; by hand it reads the environment's settings."""
    parser = argparse.ArgumentParser(description="the HTTP process of optipfair-service")
    parser.add_argument("--fd", type=int, default=None, help="a listening socket inherited from the parent")
    parser.add_argument(FROM_STDIN, action="store_true", help="settings as JSON on standard input")
    given = parser.parse_args(arguments)
    run_api(settings_of_process(given.settings_from_stdin), given.fd)


if __name__ == "__main__":
    main()
