"""What jobs may still say, and until when: `docs/versioning.md` is the page for people."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from jobs.specs.kinds import PipelineSpec


@dataclass(frozen=True)
class Deprecation:
    """A field of a kind of spec that is to go: since when that is announced, and when it goes."""

    kind: str
    field: str
    instead: str
    since: datetime
    sunset: datetime

    @property
    def sentence(self) -> str:
        """The same for a person."""
        until = f"{self.sunset:%Y-%m-%d}"
        return f"{self.field} is deprecated and will be refused from {until}: write {self.instead}"


DEPRECATIONS = (
    Deprecation(
        kind="evaluate",
        field="max_length",
        instead="text.max_length",
        since=datetime(2026, 11, 30, tzinfo=UTC),
        sunset=datetime(2027, 11, 30, tzinfo=UTC),
    ),
)
"""All of them, the oldest first."""


def deprecations_in(kind: str, spec: Any) -> Iterator[tuple[str, Deprecation]]:
    """Every deprecated field that a spec gives, with the step that it is of ("" outside of pipelines)."""
    parts: list[tuple[str, str, Any]]
    if isinstance(spec, PipelineSpec):
        parts = [(step.name, step.kind, step.spec) for step in spec.steps]
    else:
        parts = [("", kind, spec)]
    for step, of, part in parts:
        for item in DEPRECATIONS:
            if item.kind == of and getattr(part, item.field) is not None:
                yield step, item
