"""What the commands of `optipfair-service` share: settings from flags, and how they speak."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from jobs.settings import Settings

DataDir = Annotated[Path | None, typer.Option(help="Folder of everything the service keeps.")]
DatabaseUrl = Annotated[str | None, typer.Option(help="sqlite:///… or postgresql://…")]


def make_settings(flags: dict[str, Any]) -> Settings:
    """Settings from the flags that were given (each named after its setting), then the environment."""
    from jobs.settings import read_settings

    return read_settings({name: value for name, value in flags.items() if value is not None})


@contextmanager
def explained() -> Iterator[None]:
    """Turn foreseen failures into one line on stderr and exit code 1, without a stack trace."""
    from sqlalchemy.exc import SQLAlchemyError

    from jobs.errors import JobsError
    from service.lock import AlreadyRunningError

    try:
        yield
    except SQLAlchemyError as error:
        reason = str(error).splitlines()[0]
        fail(f"the database can't be used ({reason}); `optipfair-service doctor` says more")
    except (AlreadyRunningError, JobsError, OSError, RuntimeError, ValueError) as error:
        fail(str(error))


def say(line: str) -> None:
    """One line to stdout, at once: whoever reads a pipe waits for it."""
    print(line, flush=True)


def fail(reason: str) -> NoReturn:
    """One line to stderr, and the end."""
    print(f"optipfair-service: {reason}", file=sys.stderr, flush=True)
    raise typer.Exit(1)
