"""The `optipfair-service` command. Flags win over `OPTIPFAIR_*` variables."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from service.client import verbs
from service.keys_cli import keys_app
from service.terminal import DatabaseUrl, DataDir, explained, make_settings, say

app = typer.Typer(cls=verbs.Verbs, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)
app.add_typer(keys_app, name="keys")
verbs.add_to(app)

Host = Annotated[str | None, typer.Option(help="Address to listen on.")]
Port = Annotated[int | None, typer.Option(help="Port to listen on; 0 takes a free one.", min=0, max=65535)]
ModelsDir = Annotated[Path | None, typer.Option(help="Folder whose sub-folders are the local models.")]
BrokerUrl = Annotated[str | None, typer.Option(help="redis://…; by default a Valkey of our own.")]
ArtifactsUrl = Annotated[str | None, typer.Option(help="A folder, or s3://bucket/prefix.")]
PublicUrl = Annotated[str | None, typer.Option(help="Prefix of the URLs that are handed out.")]
AllowHub = Annotated[bool | None, typer.Option(help="Whether jobs may name models of the hub.")]


@app.command()
def serve(
    host: Host = None,
    port: Port = None,
    data_dir: DataDir = None,
    models_dir: ModelsDir = None,
    database_url: DatabaseUrl = None,
    broker_url: BrokerUrl = None,
    artifacts_url: ArtifactsUrl = None,
    public_url: PublicUrl = None,
    allow_hub: AllowHub = None,
    workers: Annotated[int | None, typer.Option(help="Long jobs that run at once.", min=1, max=64)] = None,
) -> None:
    """Run everything on this machine: broker, database, workers and HTTP. Ctrl-C stops it."""
    with explained():
        settings = make_settings(locals())
        from service.embedded import serve as run

        code = run(settings, say=say)
    raise typer.Exit(code)


@app.command()
def api(
    host: Host = None,
    port: Port = None,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
    broker_url: BrokerUrl = None,
    artifacts_url: ArtifactsUrl = None,
    public_url: PublicUrl = None,
    allow_hub: AllowHub = None,
) -> None:
    """Run the HTTP process alone, beside a broker and a database that run elsewhere."""
    with explained():
        settings = make_settings(locals())
        from service.api_process import run_api

        run_api(settings)


@app.command()
def worker(
    data_dir: DataDir = None,
    models_dir: ModelsDir = None,
    database_url: DatabaseUrl = None,
    broker_url: BrokerUrl = None,
    artifacts_url: ArtifactsUrl = None,
    allow_hub: AllowHub = None,
    worker_queues: Annotated[
        str | None, typer.Option("--queues", help="Queues to serve, e.g. cpu,short or gpu.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="What `auto` means in a job: cpu or cuda.")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads of an engine process.", min=1)] = None,
    once: Annotated[bool, typer.Option("--once", help="Take one job and end, with exit code 0.")] = False,
    wait: Annotated[
        float | None,
        typer.Option(help="With --once: seconds to wait for a job (0).", min=0, metavar="SECONDS"),
    ] = None,
) -> None:
    """Run one worker. Start several for several jobs at once; each runs one job at a time."""
    if wait is not None and not once:
        raise typer.BadParameter("--wait is for --once: other workers wait until they are stopped")
    with explained():
        flags = {name: value for name, value in locals().items() if name not in ("once", "wait")}
        settings = make_settings(flags)
    from jobs.handover import FROM_STDIN, child_environment, worker_document

    # The worker replaces this process, so that signals reach it and no secret stays in the environment.
    reader, writer = os.pipe()
    os.write(writer, worker_document(settings))  # far less than a pipe holds
    os.close(writer)
    os.dup2(reader, 0)
    single = ["--once", str(wait or 0.0)] if once else []
    command = [sys.executable, "-m", "worker", FROM_STDIN, *single]
    os.execve(sys.executable, command, child_environment())  # noqa: S606


@app.command()
def migrate(data_dir: DataDir = None, database_url: DatabaseUrl = None) -> None:
    """Bring the database's schema to the newest version; repeating it changes nothing."""
    with explained():
        settings = make_settings(locals())
        from migrations import current, upgrade

        settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        upgrade(settings.database_url)
        say(f"the schema is at {current(settings.database_url)}")


@app.command()
def doctor(
    data_dir: DataDir = None,
    models_dir: ModelsDir = None,
    database_url: DatabaseUrl = None,
    broker_url: BrokerUrl = None,
    artifacts_url: ArtifactsUrl = None,
) -> None:
    """Check everything a job needs, and say what to do about what is missing; exit code 1 if anything is."""
    with explained():
        settings = make_settings(locals())
        from service.doctor import examine

        findings = examine(settings)
    for finding in findings:
        say(finding.line())
    raise typer.Exit(0 if all(finding.well for finding in findings) else 1)


def main() -> None:
    """The console script."""
    app()


if __name__ == "__main__":
    main()
