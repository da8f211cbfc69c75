"""The reference of the commands, from the options themselves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer
from typer.main import get_command

_RUNNING = "Options"


def commands_page() -> str:
    """Markdown of both commands: usage and every option of every sub-command."""
    from optipfair_engine.cli.app import app as engine
    from service.cli import app as service

    parts = [
        *_command("optipfair", get_command(engine), 2),
        *_command("optipfair-service", get_command(service), 2),
    ]
    return "\n\n".join(parts) + "\n"


def _command(name: str, command: Any, level: int) -> Iterator[str]:
    context = typer.Context(command, info_name=name)
    yield f"{'#' * level} {name}"
    yield _paragraphs(command.help)
    yield f"```text\n{' '.join([name, *command.collect_usage_pieces(context)])}\n```"
    yield from _parameters(command, context)
    for word, inner in getattr(command, "commands", {}).items():
        if not inner.hidden:
            yield from _command(f"{name} {word}", inner, min(level + 1, 4))


def _parameters(command: Any, context: typer.Context) -> Iterator[str]:
    panels: dict[str, list[str]] = {}
    for parameter in command.params:
        if getattr(parameter, "hidden", False) or (said := parameter.get_help_record(context)) is None:
            continue
        panel = getattr(parameter, "rich_help_panel", None)
        panels.setdefault(panel or _RUNNING, []).append(f"`{said[0]}`\n: {_escaped(said[1]) or '…'}")
    for panel, lines in panels.items():
        yield f"**{panel}**"
        yield "\n\n".join(lines)


def _paragraphs(text: str | None) -> str:
    """Help as typer has it: lines of a paragraph belong together."""
    return "\n\n".join(_escaped(" ".join(part.split())) for part in (text or "").split("\n\n"))


def _escaped(text: str) -> str:
    """As it is read on a terminal: nothing in it is Markdown but words in backticks."""
    for mark in "\\*_<>[]":
        text = text.replace(mark, f"\\{mark}")
    return text.strip()
