"""What a job found, as charts: from its metrics, and from the small JSON files among its artifacts."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from pydantic_core import from_json

from api.context import Services
from api.dashboard import charts
from api.dashboard.charts import Chart
from api.dashboard.words import compact
from jobs.errors import JobsError
from jobs.rows import Artifact

MAX_BYTES = 64 * 1024 * 1024
_LAYER = re.compile(r"(?P<component>\w+?)_layer_(?P<layer>\d+)")
Numbers = Mapping[str, Any]


def charts_of(services: Services, metrics: Numbers, artifacts: Sequence[Artifact]) -> list[Chart]:
    """The charts of a job that succeeded: what changed, then what was found by layer."""
    found = [*before_and_after(metrics), *importance(metrics)]
    for artifact in artifacts:
        step, _, name = artifact.name.rpartition("plan.json")
        if artifact.name.endswith("bias_summary.json"):
            found += _of_file(services, artifact, bias_charts)
        elif step.endswith(".") or artifact.name == "plan.json":
            found += [] if name else _of_file(services, artifact, plan_charts)
    return found


def _of_file(
    services: Services, artifact: Artifact, make: Callable[[Numbers], Sequence[Chart]]
) -> Sequence[Chart]:
    if artifact.size > MAX_BYTES:
        return ()
    try:
        return _drawn(_File(artifact.sha256, make, services, artifact))
    except (JobsError, ValueError, KeyError, TypeError, AttributeError):
        return ()  # a file of another version, or gone: the page is still good without its charts


@dataclass(frozen=True)
class _File:
    """What is drawn of which content; where it lies makes no difference."""

    sha256: str
    make: Callable[[Numbers], Sequence[Chart]]
    services: Services = field(compare=False)
    artifact: Artifact = field(compare=False)


@lru_cache(maxsize=128)
def _drawn(file: _File) -> Sequence[Chart]:
    """The charts of a file, kept by its hash: files never change, and a plan may have megabytes."""
    stored = file.artifact
    chunks = file.services.store.open_range(stored.storage, stored.name, 0, stored.size)
    return tuple(file.make(from_json(b"".join(chunks))))


def number(value: Any) -> float | None:
    """A finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


_PAIRS = (
    ("Parameters", "original_parameters", "pruned_parameters"),
    ("Perplexity", "perplexity_dense", "perplexity_pruned"),
    ("Perplexity", "perplexity_baseline", "perplexity"),
    ("Tokens per second", "tokens_per_second_baseline", "tokens_per_second"),
    ("CrowS-Pairs score", "crows_pairs_score_baseline", "crows_pairs_score"),
)


#: What is counted is more or fewer, what is measured higher or lower.
_COUNTED = ("Parameters", "Tokens per second")


def before_and_after(metrics: Numbers) -> Iterator[Chart]:
    """Pairs among the metrics; a pipeline's stand under the name of each step."""
    for title, before, after in _PAIRS:
        for name in metrics:
            prefix = name.removesuffix(before)
            first, second = number(metrics.get(name)), number(metrics.get(prefix + after))
            if not name.endswith(before) or (prefix and not prefix.endswith(".")):
                continue
            if first is not None and second is not None:
                yield pair(f"{prefix.rstrip('.')}: {title}" if prefix else title, first, second)


def pair(title: str, first: float, second: float) -> Chart:
    """A number before and after."""
    return charts.sideways(
        [("before", first, "pale"), ("after", second, "one")],
        title=_change(title, first, second),
        subtitle=title.rpartition(": ")[2].lower(),
    )


def _change(title: str, first: float, second: float) -> str:
    if not first or first == second:
        return f"{title}: unchanged" if first == second else title
    ratio = second / first
    counted = title.endswith(_COUNTED)
    if ratio >= 2 or ratio <= 0.5:
        return f"{title}: {ratio:.3g} times as {'many' if counted else 'high'} as before"
    words = ("more", "fewer") if counted else ("higher", "lower")
    return f"{title}: {100 * abs(ratio - 1):.1f} % {words[ratio < 1]}"


def importance(metrics: Numbers) -> Iterator[Chart]:
    """The importance of each layer."""
    for name, scores in metrics.items():
        if name.rpartition(".")[2] != "importance" or not isinstance(scores, dict):
            continue
        values = {
            int(layer): found for layer, score in scores.items() if (found := number(score)) is not None
        }
        if not values:
            continue
        least = sorted(values, key=lambda layer: (values[layer], layer))[: max(1, len(values) // 10)]
        yield charts.by_layer(
            values,
            title=f"Layers {', '.join(map(str, sorted(least)))} change least what passes through them"
            if len(least) > 1
            else f"Layer {least[0]} changes least what passes through it",
            subtitle="importance (1 − cosine)",
            styles=dict.fromkeys(least, "two"),
        )


def plan_charts(plan: Numbers) -> list[Chart]:
    """What a plan keeps, and the error that it expects."""
    found = []
    removed = plan.get("removed_layers") or []
    if removed:
        found.append(_layers(plan["num_layers"], removed))
    if plan.get("kept_neurons"):
        kept = {int(layer): len(units) for layer, units in plan["kept_neurons"].items()}
        found.append(_kept(kept, _widths(plan), "neurons"))
    if plan.get("kept_heads"):
        kept = {int(layer): len(heads["query"]) for layer, heads in plan["kept_heads"].items()}
        found.append(_kept(kept, {}, "query heads"))
    if plan.get("kept_experts"):
        orders = plan.get("removal_order") or {}
        kept = {int(layer): len(experts) for layer, experts in plan["kept_experts"].items()}
        found.append(_kept(kept, {int(layer): len(order) for layer, order in orders.items()}, "experts"))
    if plan.get("curves"):
        found.append(error_curve(plan))
    return found


def _widths(plan: Numbers) -> dict[int, int]:
    """How many neurons the layers had, as far as the plan tells."""
    order = plan.get("removal_order") or {}
    curves = plan.get("curves") or {}
    found = {int(layer): len(curve) - 1 for layer, curve in curves.items()}
    kept = plan.get("kept_neurons") or {}
    return found or {int(layer): len(gone) + len(kept.get(layer, ())) for layer, gone in order.items()}


def _layers(count: int, removed: Sequence[int]) -> Chart:
    gone = set(removed)
    step, width = charts.slots(count)
    bars = [
        charts.Bar(0.5 + i * step, width, 8, 40, "two" if i in gone else "one",
                   f"layer {i}: {'removed' if i in gone else 'kept'}")
        for i in range(count)
    ]  # fmt: skip
    return Chart(
        f"{len(gone)} of {count} layers are gone",
        "layers",
        bars=bars,
        across=charts.layer_ticks(range(count)),
        across_title="layer",
        key=(("one", "kept"), ("two", "removed")),
        head=("Layer", ""),
        rows=[(str(i), "removed" if i in gone else "kept") for i in range(count)],
        height=56,
    )


def _kept(kept: Mapping[int, int], original: Mapping[int, int], unit: str) -> Chart:
    layers = sorted(kept)
    known = all(original.get(layer, 0) >= kept[layer] for layer in layers)
    before = [original[layer] if known else kept[layer] for layer in layers]
    scaled = charts.scale(before)
    texts = [
        f"layer {layer}: {kept[layer]:,} of {had:,}" if known else f"layer {layer}: {kept[layer]:,}"
        for layer, had in zip(layers, before, strict=True)
    ]
    behind = charts.upright(scaled, before, ["pale"] * len(layers), texts) if known else []
    front = charts.upright(scaled, [kept[layer] for layer in layers], ["one"] * len(layers), texts)
    sizes = sorted(kept.values())
    equal = sizes[0] == sizes[-1]
    title = f"Every layer keeps {sizes[0]:,} {unit}" if equal else (
        f"Layers keep between {sizes[0]:,} and {sizes[-1]:,} {unit}"
    )  # fmt: skip
    return Chart(
        title,
        unit,
        bars=[*behind, *front],
        across=charts.layer_ticks(layers),
        down=scaled.ticks(),
        across_title="layer",
        key=(("one", "kept"), ("pale", "gone")) if known else (),
        head=("Layer", "Kept", "Before") if known else ("Layer", "Kept"),
        rows=[
            (str(layer), f"{kept[layer]:,}", *([f"{had:,}"] if known else []))
            for layer, had in zip(layers, before, strict=True)
        ],
    )


def error_curve(plan: Numbers) -> Chart:
    """The error that calibration predicts at each ratio: the mean of the layers, and each of them."""
    curves = {int(layer): curve for layer, curve in plan["curves"].items()}
    places = range(101)
    sampled = [[_at(curve, place / 100) for place in places] for curve in curves.values()]
    mean = [sum(curve[place] for curve in sampled) / len(sampled) for place in places]
    scaled = charts.log_scale([value for value in mean if value > 0] + [curve[10] for curve in sampled], 1e-6)
    lines = [_line(curve, scaled, "thin") for curve in sampled[:: max(1, len(sampled) // 40)]]
    lines.append(_line(mean, scaled, "thick"))
    chosen = _ratio(curves, plan.get("kept_neurons") or {})
    marks, title = [], "Predicted error of the layers' output by share of neurons removed"
    if chosen is not None:
        here = _at(mean, chosen)
        marks.append(charts.Mark(100 * chosen, scaled(here), f"{100 * chosen:.0f} %: {here:.3g}"))
        title = f"With {100 * chosen:.0f} % fewer neurons the layers' output is off by {here:.2g}"
        later = next((place for place in places if mean[place] >= 2 * here > 0), None)
        title += f"; twice that with {later} %" if later is not None else ""
    return Chart(
        title,
        "relative squared error, mean of the layers (thin: each layer)",
        lines=lines,
        marks=marks,
        across=[charts.Tick(place, f"{place} %") for place in range(0, 101, 25)],
        down=scaled.ticks(),
        across_title="neurons removed",
        head=("Removed", "Mean error"),
        rows=[(f"{place} %", f"{mean[place]:.4g}") for place in range(10, 100, 10)],
    )


def _line(values: Sequence[float], scaled: charts.Scale, style: str) -> charts.Line:
    points = [(float(place), scaled(value)) for place, value in enumerate(values) if value > scaled.low]
    return charts.Line(charts.path(points or [(0.0, scaled(scaled.low))]), style)


def _at(curve: Sequence[float], share: float) -> float:
    return float(curve[round(share * (len(curve) - 1))])


def _ratio(curves: Mapping[int, Sequence[float]], kept: Mapping[str, Sequence[int]]) -> float | None:
    """The share of neurons that the plan removes, over the layers with a curve."""
    before = sum(len(curve) - 1 for curve in curves.values())
    after = sum(len(kept.get(str(layer), curve[1:])) for layer, curve in curves.items())
    return None if not before else (before - after) / before


def bias_charts(summary: Numbers) -> list[Chart]:
    """The mean difference of each layer, with its 95 % interval: one chart a component."""
    groups: dict[str, dict[int, Numbers]] = {}
    for name, entry in ((summary.get("activations") or {}).get("layers") or {}).items():
        match = _LAYER.fullmatch(name)
        if match and number(entry.get("value")) is not None:
            groups.setdefault(match["component"], {})[int(match["layer"])] = entry
    return [_bias(component, layers) for component, layers in groups.items() if len(layers) > 1]


def _bias(component: str, layers: Mapping[int, Numbers]) -> Chart:
    order = sorted(layers)
    ends = {layer: (number(layers[layer].get("low")), number(layers[layer].get("high"))) for layer in order}
    values = [float(layers[layer]["value"]) for layer in order]
    scaled = charts.scale([*values, *(end for pair in ends.values() for end in pair if end is not None)])
    top = order[max(range(len(order)), key=lambda place: values[place])]
    says = [f"layer {layer}: {value:.4g}{_interval(*ends[layer])}"
            for layer, value in zip(order, values, strict=True)]  # fmt: skip
    styles = ["two" if layer == top else "one" for layer in order]
    bars = [
        charts.Bar(
            bar.x, bar.width, bar.y, bar.height, bar.style, bar.says,
            *(None if end is None else scaled(end) for end in ends[layer]),
        )
        for layer, bar in zip(order, charts.upright(scaled, values, styles, says), strict=True)
    ]  # fmt: skip
    return Chart(
        f"{_called(component)}: the prompts differ most in layer {top}",
        "mean absolute difference of activations, with 95 % intervals",
        bars=bars,
        across=charts.layer_ticks(order),
        down=scaled.ticks(),
        across_title="layer",
        head=("Layer", "Difference", "95 % interval"),
        rows=[
            (str(layer), f"{value:.4g}", _interval(*ends[layer]).strip(" ()") or "–")
            for layer, value in zip(order, values, strict=True)
        ],
    )


def _called(component: str) -> str:
    return component.replace("_", " ").capitalize().replace("Mlp", "MLP")


def _interval(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f" ({compact(low)} … {compact(high)})"
