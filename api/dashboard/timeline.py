"""The events of a job as a timeline: progress of one stage is one line, and stages are bars over time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from api.dashboard.words import span
from jobs.rows import Event
from jobs.times import rfc3339

SHOWN = 60
_TOLD = {
    "queued": "waits for a worker",
    "started": "a worker has taken it",
    "running": "a worker has taken it",
    "retried": "put back into the queue by a person",
    "cancelling": "asked to stop",
}


@dataclass
class Moment:
    """One line: something that happened, or a stretch of progress in one stage."""

    type: str
    attempt: int
    begun: int
    ended: int
    text: str
    stage: str | None = None
    count: int = 1

    def as_dict(self) -> dict[str, Any]:
        """For the template."""
        took = self.ended - self.begun
        return {
            "type": self.type,
            "attempt": self.attempt,
            "time": rfc3339(self.begun),
            "text": self.text,
            "stage": self.stage,
            "took": span(took / 1000) if took >= 100 else "",
        }


def moments(events: Sequence[Event]) -> list[dict[str, Any]]:
    """The latest moments, newest first."""
    found: list[Moment] = []
    for event in events:
        stage = _stage(event) if event.type == "progress" else None
        last = found[-1] if found else None
        text = _text(event)
        if last and stage is not None and (last.stage, last.attempt) == (stage, event.attempt):
            last.ended, last.text, last.count = event.time, text, last.count + 1
        else:
            if last and last.stage is not None and last.attempt == event.attempt:
                last.ended = max(last.ended, event.time)
            found.append(Moment(event.type, event.attempt, event.time, event.time, text, stage))
    return [moment.as_dict() for moment in reversed(found[-SHOWN:])]


def _stage(event: Event) -> str:
    """What a progress event belongs to: of a pipeline, the step's stage."""
    return " · ".join(str(event.data[key]) for key in ("step", "stage") if event.data.get(key))


def _text(event: Event) -> str:
    """What an event says; it is data from the worker, shown as text."""
    data = event.data
    told = [str(data[key]) for key in ("message", "code", "reason") if data.get(key)]
    if data.get("total"):
        told.insert(0, f"{data.get('done')}/{data['total']}")
    return " · ".join(told) or _TOLD.get(event.type, "")


def stages(events: Sequence[Event]) -> list[dict[str, Any]]:
    """How the newest attempt's time was spent: a bar a stage, `x` and `width` in percent of the whole."""
    newest = max((event.attempt for event in events), default=0)
    mine = [event for event in events if event.attempt == newest]
    told = [event for event in mine if event.type == "progress" and event.data.get("stage")]
    if len(told) < 2:
        return []
    first, last = mine[0].time, mine[-1].time
    whole = max(last - first, 1)
    parts: list[list[Any]] = []
    for event in told:
        name = _stage(event)
        if parts and parts[-1][0] == name:
            parts[-1][2] = event.time
        else:
            begun = parts[-1][2] if parts else first
            parts.append([name, begun, event.time])
    parts[-1][2] = last  # its results were kept until then
    return [
        {
            "name": name,
            "x": round(100 * (begun - first) / whole, 2),
            "width": max(round(100 * (ended - begun) / whole, 2), 0.6),
            "took": span((ended - begun) / 1000),
            "place": place % 6,
        }
        for place, (name, begun, ended) in enumerate(parts[:24])
    ]
