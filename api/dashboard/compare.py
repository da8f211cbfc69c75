"""Two jobs side by side: what was asked differently, and what came of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from api.context import Services
from api.dashboard import charts, findings, metrics as tables
from api.dashboard.listing import job_head
from api.dashboard.words import number, plural, words
from jobs.rows import Job

_CHARTED = ("perplexity_ratio", "perplexity_pruned", "perplexity", "pruned_parameters", "output_bytes",
            "mean_difference", "tokens_per_second", "seconds")  # fmt: skip
#: What perplexities hang on beside the model and the text.
_WINDOWS = ("evaluation_max_length", "evaluation_windows", "evaluation_tokens")


def comparison(services: Services, first: Job, second: Job) -> dict[str, Any]:
    """What the page shows."""
    repository, now = services.repository, services.repository.now()
    known = [
        tables.without_copies(repository.get_metrics(job.id) or {}) if job.has_results else {}
        for job in (first, second)
    ]
    found = [
        findings.charts_of(services, metrics, repository.list_artifacts(job.id)) if metrics else []
        for job, metrics in zip((first, second), known, strict=True)
    ]
    apart = _measured_apart(first.spec, second.spec, known[0], known[1])
    return {
        "pair": [job_head(job, now) for job in (first, second)],
        "asked": list(_asked(first.spec, second.spec)),
        "measured": list(_measured(known[0], known[1], apart)),
        "apart": bool(apart),
        "charts": list(_charts(known[0], known[1], apart)),
        "findings": [[chart for chart in charted if chart.across] for charted in found],
    }


def _asked(first: Mapping[str, Any], second: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """The fields of the spec that differ."""
    one, other = dict(_leaves(first)), dict(_leaves(second))
    for name in dict.fromkeys([*one, *other]):
        if one.get(name) != other.get(name):
            yield name, _short(one.get(name)), _short(other.get(name))


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
) -> Iterator[dict[str, str]]:
    """The metrics of both, with the change from the first to the second of those that can be compared."""
    one, other = tables.flat(first), tables.flat(second)
    for name in dict.fromkeys([*one, *other]):
        before, after = one.get(name), other.get(name)
        values = [tables.said(name, value) if value is not None else "–" for value in (before, after)]
        yield {
            "name": name,
            "label": words(name),
            "first": values[0],
            "second": values[1],
            "change": "" if name in apart else _change(findings.number(before), findings.number(after)),
        }


def _change(before: float | None, after: float | None) -> str:
    if before is None or after is None or not before:
        return ""
    return "same" if before == after else f"{after / before - 1:+.1%}"


def _charts(
    first: Mapping[str, Any], second: Mapping[str, Any], apart: frozenset[str]
) -> Iterator[charts.Chart]:
    for name in (name for name in _CHARTED if name not in apart):
        before, after = findings.number(first.get(name)), findings.number(second.get(name))
        if before is not None and after is not None and before != after:
            pairs = [("A", before, "pale"), ("B", after, "one")]
            change = _change(before, after)
            title = f"{words(name).capitalize()}: {change}" if change else words(name).capitalize()
            yield charts.sideways(pairs, title=title, subtitle="A and B")
