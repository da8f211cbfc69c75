"""The verbs of a caller: `run`, `submit`, `wait`, `logs`, `verdict`, `download`, `cancel`, `upload`.

Exit codes: 0 pass (or no gates, and the job succeeded), 1 fail, 2 inconclusive, 3 the job did not succeed,
4 refused, unreachable, unreadable or wrong usage, 130 Ctrl-C.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

if TYPE_CHECKING:
    from service.client.api import OptipfairClient

REFUSED, INTERRUPTED = 4, 130
Url = Annotated[str, typer.Option(help="Where the service is.", envvar="OPTIPFAIR_URL")]
Key = Annotated[
    str, typer.Option(help="API key; better in the environment.", envvar="OPTIPFAIR_KEY", show_default=False)
]
JobFile = Annotated[str, typer.Argument(metavar="FILE.json", help="Body of POST /v1/jobs; - reads stdin.")]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="Id of the job.")]
Download = Annotated[Path | None, typer.Option(metavar="DIR", help="Folder for the job's files.")]
Markdown = Annotated[Path | None, typer.Option(metavar="FILE", help="Write the verdict as Markdown.")]
Junit = Annotated[Path | None, typer.Option(metavar="FILE", help="Write the verdict as JUnit XML.")]
LOCAL = "http://127.0.0.1:8000"


@contextmanager
def _wrong_usage() -> Iterator[None]:
    """Make the parser's errors exit code 4: its own, 2, would say `inconclusive`."""
    try:
        yield
    except Exception as error:
        if hasattr(error, "exit_code") and hasattr(error, "show"):  # as typer's own usage errors
            error.exit_code = REFUSED
        raise


class Verb(TyperCommand):
    """A command of a caller."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As every command, but for that exit code."""
        with _wrong_usage():
            return super().parse_args(ctx, args)


class Verbs(TyperGroup):
    """The whole command: a verb that is misspelt in a script is wrong usage too."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """As every group, but for that exit code."""
        with _wrong_usage():
            return super().resolve_command(ctx, args)


def add_to(app: typer.Typer) -> None:
    """Make the verbs commands of `app`."""
    for verb in (run, submit, wait, logs, verdict, download, cancel, upload):
        app.command(cls=Verb, rich_help_panel="As a caller")(verb)


def run(
    file: JobFile,
    url: Url = LOCAL,
    key: Key = "",
    download: Download = None,
    markdown: Markdown = None,
    junit: Junit = None,
    wait: Annotated[
        bool, typer.Option("--wait/--detach", help="Wait for the end, or print the id and leave.")
    ] = True,
) -> None:
    """Submit a job, show its progress, print its verdict; the exit code says how it went.

    0 pass (or no gates), 1 fail, 2 inconclusive, 3 the job did not succeed, 4 refused or unreachable.
    Ctrl-C leaves the job running.
    """
    with connected(url, key) as client:
        from service.client.run import Outputs, follow, with_uploads

        outputs = Outputs(download, markdown, junit)
        if not wait and outputs != Outputs():
            raise _end("--download, --markdown and --junit need the job's end: leave --detach away")
        outputs.check()
        job_id = client.submit(with_uploads(client, file))["id"]
        if not wait:
            print(job_id)
            return
        print(f"job {job_id}: {client.url}/jobs/{job_id}", file=sys.stderr, flush=True)
        raise typer.Exit(follow(client, job_id, outputs))


def submit(file: JobFile, url: Url = LOCAL, key: Key = "") -> None:
    """Submit a job and print its id."""
    with connected(url, key) as client:
        from service.client.run import with_uploads

        print(client.submit(with_uploads(client, file))["id"])


def wait(
    job: JobId,
    url: Url = LOCAL,
    key: Key = "",
    download: Download = None,
    markdown: Markdown = None,
    junit: Junit = None,
) -> None:
    """Wait for a job's end as `run` does, with the same exit codes."""
    with connected(url, key) as client:
        from service.client.run import Outputs, follow

        outputs = Outputs(download, markdown, junit)
        outputs.check()
        raise typer.Exit(follow(client, job, outputs))


def logs(
    job: JobId,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on to the end of the job.")] = False,
    tail: Annotated[int | None, typer.Option(help="At most so many lines from the end.", min=0)] = None,
    attempt: Annotated[int | None, typer.Option(help="Only of this attempt.", min=1)] = None,
    url: Url = LOCAL,
    key: Key = "",
) -> None:
    """Print what a job's attempts said; with --follow as they say it. Exit code 0, whatever became of it."""
    with connected(url, key) as client:
        from service.client.text import plain

        if follow:
            lines = client.follow_logs(job, attempt=attempt, tail=tail)
        else:
            lines = iter(client.logs(job, attempt=attempt, tail=tail).removesuffix("\n").split("\n"))
        for line in lines:
            print(plain(line), flush=follow)


def verdict(
    job: JobId, url: Url = LOCAL, key: Key = "", markdown: Markdown = None, junit: Junit = None
) -> None:
    """Print the verdict of an ended job, with the exit codes of `run`; 4 while it has not ended."""
    with connected(url, key) as client:
        from service.client.display import ProgressDisplay
        from service.client.run import Outputs, conclude

        outputs = Outputs(markdown=markdown, junit=junit)
        outputs.check()
        found = client.job(job)
        raise typer.Exit(conclude(client, found, outputs, ProgressDisplay()))


def download(
    job: JobId,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Made if it is not there.")] = Path(),
    name: Annotated[list[str] | None, typer.Option(help="Only this file; repeatable.")] = None,
    url: Url = LOCAL,
    key: Key = "",
) -> None:
    """Fetch a job's files with their SHA-256 checked; an interrupted download goes on where it was."""
    with connected(url, key) as client:
        from service.client.display import ProgressDisplay

        with ProgressDisplay() as display:
            client.download(job, folder, names=name, on_bytes=display.file)


def cancel(job: JobId, url: Url = LOCAL, key: Key = "") -> None:
    """Cancel a job, and print the state that it is in then."""
    with connected(url, key) as client:
        print(client.cancel(job)["state"])


def upload(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH…", help="A model's folder, or files.")],
    kind: Annotated[str, typer.Option(help="model, calibration or suite.")] = "model",
    name: Annotated[str, typer.Option(help="What to call it; by default as the first path.")] = "",
    url: Url = LOCAL,
    key: Key = "",
) -> None:
    """Send a model, a text to calibrate on or a suite, and print the id that jobs name it by.

    What was sent before is not sent again; a transfer that was cut goes on where it was.
    """
    with connected(url, key) as client:
        from service.client.display import ProgressDisplay

        with ProgressDisplay() as display:
            done = client.upload(kind, name or paths[0].resolve().name, *paths, on_bytes=display.sent)
        print(done["id"])


@contextmanager
def connected(url: str, key: str) -> Iterator[OptipfairClient]:
    """A client; what is foreseen to go wrong is one line on stderr and exit code 4."""
    # httpx imports its own command with all that draws it, which takes longer than the rest of it
    sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type]
    try:
        from service.client.api import OptipfairClient
        from service.client.errors import ClientError
    except ModuleNotFoundError as error:
        raise _end(f"{error.name} is missing: pip install 'optipfair-service[client]'") from None
    try:
        with OptipfairClient(url, key) as client:
            yield client
    except ClientError as error:
        raise _end(str(error)) from None
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None


def _end(reason: str) -> typer.Exit:
    text = "\n".join("".join(c if c.isprintable() else " " for c in line) for line in reason.split("\n"))
    print(f"optipfair-service: {text}", file=sys.stderr, flush=True)
    return typer.Exit(REFUSED)
