"""The HTTP process: uvicorn on an address of its own, or on a socket inherited from `serve`."""

from __future__ import annotations

import argparse
import logging
import os
import socket
from collections.abc import Sequence

from jobs.settings import Settings


def run_api(settings: Settings, descriptor: int | None = None) -> None:
    """Serve until SIGTERM or Ctrl-C.

    Access is logged by the application, which redacts the tokens of download links; uvicorn's own log would
    not.
    """
    import uvicorn

    from api.main import create_app
    from jobs.logs import configure_logging

    configure_logging(settings, "api")
    logging.getLogger("alembic").setLevel(logging.WARNING)  # /readyz asks it for the version at each call
    config = uvicorn.Config(
        create_app(settings),
        host=settings.host,
        port=settings.port,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=5,
        log_config=None,
        log_level="warning",
    )
    server = uvicorn.Server(config)
    if descriptor is None:
        server.run()
    else:
        with socket.socket(fileno=os.dup(descriptor)) as listener:
            server.run(sockets=[listener])


def main(arguments: Sequence[str] | None = None) -> None:
    """`python -m service.api_process --fd N`, as `serve` starts it: settings come from the environment."""
    parser = argparse.ArgumentParser(description="the HTTP process of optipfair-service")
    parser.add_argument("--fd", type=int, default=None, help="a listening socket inherited from the parent")
    run_api(Settings(), parser.parse_args(arguments).fd)


if __name__ == "__main__":
    main()
