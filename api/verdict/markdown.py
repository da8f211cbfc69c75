"""The verdict as Markdown, for a job summary, a comment or a log."""

from __future__ import annotations

import re

from api import models
from api.verdict import wording

_MAX_MESSAGE = 4000
_MAX_WARNING = 300
_MARKUP = re.compile(r"[\\`*\[\]|~!#$@]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


def render(job: models.Job, verdict: models.Verdict, link: str) -> str:
    """One heading, one row a check, what went wrong if the job did not succeed, and the job's link."""
    parts = [f"## OptiPFair verdict: {verdict.verdict}"]
    if job.state.value != "succeeded":
        parts.append(_failure(job))
    if verdict.checks:
        parts.append(_table(verdict.checks))
    elif job.state.value == "succeeded":
        parts.append("The job has no gates.")
    if job.warnings:
        parts.append("\n".join(["**Warnings**", "", *(f"- {_short(item.message)}" for item in job.warnings)]))
    parts.append(f"Job [{job.id}]({link}), {plain(job.kind)}.")
    return "\n\n".join(parts) + "\n"


def plain(text: str) -> str:
    """Text that Markdown shows as it is, on one line, in a table's cell too."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    escaped = "".join(_ENTITIES.get(c, c) for c in line)
    return _MARKUP.sub(lambda found: "\\" + found.group(), escaped)


def code(text: str) -> str:
    """Text as a code span, where nothing is markup and nobody is mentioned; longer text is cut."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    line = line if len(line) <= _MAX_MESSAGE else line[:_MAX_MESSAGE] + " …"
    longest = max((len(run) for run in re.findall("`+", line)), default=0)
    fence = "`" * (longest + 1)
    return f"{fence} {line} {fence}" if longest else f"`{line}`"


def _short(text: str) -> str:
    return plain(text if len(text) <= _MAX_WARNING else text[:_MAX_WARNING] + " …")


def _failure(job: models.Job) -> str:
    if job.error is None:
        return f"The job {wording.ending(job.state.value)}."
    return f"The job {wording.ending(job.state.value)}: {code(job.error.code)}, {code(job.error.message)}"


def _table(checks: list[models.Check]) -> str:
    rows = ["| metric | value | bound | outcome |", "|---|---|---|---|"]
    for check in (check.model_dump() for check in checks):
        cells = (check["metric"], wording.value(check), wording.bound(check), wording.outcome(check))
        rows.append(f"| {' | '.join(plain(cell) for cell in cells)} |")
    return "\n".join(rows)
