"""Two jobs side by side: what was asked differently, and what came of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, Field

from api.context import Services
from api.dashboard import charts, findings, metrics as tables
from api.dashboard.listing import job_head
from api.dashboard.words import number, plural, words
from jobs.rows import Job

_CHARTED = ("perplexity_ratio", "perplexity_pruned", "perplexity", "pruned_parameters", "output_bytes",
            "mean_difference", "tokens_per_second", "seconds")  # fmt: skip
#: What perplexities hang on beside the model and the text.
_WINDOWS = ("evaluation_max_length", "evaluation_windows", "evaluation_tokens")


class Difference(BaseModel):
    """A field of the specifications, or a metric, of two jobs."""

    name: str
    first: Any
    second: Any
    change: float | None = Field(
        default=None,
        description="as a share of the first; null where the two can't be compared",
    )


class Comparison(BaseModel):
    """Two jobs side by side."""

    jobs: list[str] = Field(description="the two ids, the first of which is compared with")
    spec: list[Difference] = Field(description="the fields that were asked differently")
    metrics: list[Difference] = Field(description="the metrics of either; null where one has none")


def differences(services: Services, first: Job, second: Job) -> Comparison:
    """What was asked differently of two jobs, and what both measured."""
    one, other = (_metrics(services, job) for job in (first, second))
    apart = _measured_apart(first.spec, second.spec, one, other)
    return Comparison(
        jobs=[first.id, second.id],
        spec=list(_asked(first.spec, second.spec)),
        metrics=list(_measured(one, other, apart)),
    )


def _metrics(services: Services, job: Job) -> dict[str, Any]:
    found = services.repository.get_metrics(job.id) if job.has_results else None
    return tables.without_copies(found or {})


def comparison(services: Services, first: Job, second: Job) -> dict[str, Any]:
    """What the page shows."""
    repository, now = services.repository, services.repository.now()
    known = [_metrics(services, job) for job in (first, second)]
    found = [
        findings.charts_of(services, metrics, repository.list_artifacts(job.id)) if metrics else []
        for job, metrics in zip((first, second), known, strict=True)
    ]
    apart = _measured_apart(first.spec, second.spec, known[0], known[1])
    return {
        "pair": [job_head(job, now) for job in (first, second)],
        "asked": [
            (each.name, _short(each.first), _short(each.second)) for each in _asked(first.spec, second.spec)
        ],
        "measured": [_line(each) for each in _measured(known[0], known[1], apart)],
        "apart": bool(apart),
        "charts": list(_charts(known[0], known[1], apart)),
        "findings": [[chart for chart in charted if chart.across] for charted in found],
    }


def _asked(first: Mapping[str, Any], second: Mapping[str, Any]) -> Iterator[Difference]:
    """The fields of the spec that differ."""
    one, other = dict(_leaves(first)), dict(_leaves(second))
    for name in dict.fromkeys([*one, *other]):
        if one.get(name) != other.get(name):
            yield Difference(name=name, first=one.get(name), second=other.get(name))


def _leaves(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for name, part in value.items():
            yield from _leaves(part, f"{place}.{name}" if place else str(name))
    elif value is not None:
        yield place, value


def _short(value: Any) -> str:
    if isinstance(value, list):
        plain = all(isinstance(part, str | int | float) for part in value)
        text = ", ".join(map(str, value)) if plain else ""
        return text if 0 < len(text) <= 60 else plural(len(value), "item")
    text = number(value)
    return text if len(text) <= 80 else f"{text[:79]}…"


def _measured_apart(
    spec: Mapping[str, Any],
    other_spec: Mapping[str, Any],
    first: Mapping[str, Any],
    second: Mapping[str, Any],
) -> frozenset[str]:
    """The perplexities that both have, but of other texts or windows: nothing follows from their change."""
    texts, other_texts = _texts(spec), _texts(other_spec)
    found = set()
    for name in first.keys() & second.keys():
        step = name[: name.rfind(".") + 1]
        cut = [(first.get(step + part), second.get(step + part)) for part in _WINDOWS]
        differ = any(one != other for one, other in cut if one is not None and other is not None)
        if "perplexity" in name and (differ or texts.get(step) != other_texts.get(step)):
            found.add(name)
    return frozenset(found)


def _texts(spec: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Which text perplexity is measured on, by the beginning of the metrics' names (a pipeline's step)."""
    steps = {f"{step['name']}.": step["spec"] for step in spec.get("steps", ())} or {"": spec}
    texts = {step: part.get("evaluation") or part.get("text") or {} for step, part in steps.items()}
    return {
        step: {name: value for name, value in text.items() if name not in ("max_length", "num_windows")}
        for step, text in texts.items()
    }


def _measured(
    first: Mapping[str, Any], second: Mapping[str, Any], apart: frozenset[str]
) -> Iterator[Difference]:
    """The metrics of both, with the change from the first to the second of those that can be compared."""
    one, other = tables.flat(first), tables.flat(second)
    for name in dict.fromkeys([*one, *other]):
        before, after = one.get(name), other.get(name)
        change = None if name in apart else _change(findings.number(before), findings.number(after))
        yield Difference(name=name, first=before, second=after, change=change)


def _line(metric: Difference) -> dict[str, str]:
    """A metric as the page shows it."""
    values = [
        "–" if value is None else tables.said(metric.name, value) for value in (metric.first, metric.second)
    ]
    return {"name": metric.name, "label": words(metric.name), "first": values[0], "second": values[1],
            "change": _percent(metric.change)}  # fmt: skip


def _change(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None or not before else after / before - 1


def _percent(change: float | None) -> str:
    return "" if change is None else f"{change:+.1%}" if change else "same"


def _charts(
    first: Mapping[str, Any], second: Mapping[str, Any], apart: frozenset[str]
) -> Iterator[charts.Chart]:
    for name in (name for name in _CHARTED if name not in apart):
        before, after = findings.number(first.get(name)), findings.number(second.get(name))
        if before is not None and after is not None and before != after:
            pairs = [("A", before, "pale"), ("B", after, "one")]
            change = _percent(_change(before, after))
            title = f"{words(name).capitalize()}: {change}" if change else words(name).capitalize()
            yield charts.sideways(pairs, title=title, subtitle="A and B")
