"""One HTML file with a bias job's results: tables, warnings and figures, nothing fetched from elsewhere."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, Final

from optipfair_engine.bias.statistics.profile import Profile

#: Figures in one report: more would make a file that no browser opens gladly; the rest lie beside it.
MOST_FIGURES: Final = 36
_WIDTH: Final = 1100

_STYLE: Final = """
:root{color-scheme:light dark}
body{font:16px/1.5 system-ui,sans-serif;max-width:68rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.6rem}h2{font-size:1.25rem;margin-top:2.2rem;border-bottom:1px solid #8884}
table{border-collapse:collapse;margin:.6rem 0;font-variant-numeric:tabular-nums;display:block;overflow-x:auto}
th,td{padding:.25rem .8rem .25rem 0;text-align:right;border-bottom:1px solid #8883}
th:first-child,td:first-child{text-align:left}caption{text-align:left;color:#777;padding-bottom:.3rem}
.warning{border-left:4px solid #D55E00;padding:.2rem .8rem;margin:.5rem 0;background:#D55E0014}
.better{color:#007a5a;font-weight:600}.worse{color:#b3410a;font-weight:600}.inconclusive,.not_comparable{color:#777;font-weight:600}
figure{margin:1rem 0}img{max-width:100%;height:auto;background:#fff}figcaption{color:#777;font-size:.85rem}
"""


def write_report(
    summary: Mapping[str, Any], profile: Profile | None, figures: Path, path: Path, figure_format: str
) -> None:
    """Write the report.

    Args:
        summary: the strict JSON of ``bias_summary.json``.
        profile: the pairs, if there are any.
        figures: the folder of the figures; png and svg ones are embedded.
        path: the file to write.
        figure_format: of the figures.
    """
    body = "\n".join(_sections(summary, profile, figures, figure_format))
    title = f"Bias of {escape(str(summary['model']))}"
    if summary.get("baseline"):
        title += f", compared with {escape(str(summary['baseline']))}"
    path.write_text(
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width,initial-scale=1"><style>{_STYLE}</style></head>\n'
        f"<body><h1>{title}</h1>\n{body}\n</body></html>\n",
        encoding="utf-8",
    )


def _sections(
    summary: Mapping[str, Any], profile: Profile | None, figures: Path, figure_format: str
) -> Iterable[str]:
    yield from _warnings(summary)
    if "comparison" in summary:
        yield from _comparison(summary["comparison"])
    if "activations" in summary:
        yield from _activations(summary["activations"])
    if "neurons" in summary:
        yield from _neurons(summary["neurons"])
    if "behaviour" in summary:
        yield from _behaviour(summary["behaviour"], summary.get("baseline_behaviour"))
    if profile is not None:
        yield from _pairs(profile)
        yield from _figures([figures / name for name in profile.figures], figure_format)


def _warnings(summary: Mapping[str, Any]) -> Iterable[str]:
    found: dict[str, None] = {}
    for part in ("activations", "comparison", "neurons", "behaviour"):
        found.update(dict.fromkeys(summary.get(part, {}).get("warnings", [])))
    yield from (f'<p class="warning">{escape(text)}</p>' for text in found)


def _number(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else escape(str(value))


def _interval(entry: Mapping[str, Any] | None) -> str:
    if entry is None:
        return "–"
    if entry["low"] is None:
        return _number(entry["value"])
    return f"{_number(entry['value'])} ({_number(entry['low'])} … {_number(entry['high'])})"


def _table(caption: str, headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in headers)
    lines = "\n".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    top = f"<caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead>"
    return f"<table>{top}<tbody>\n{lines}\n</tbody></table>"


def _outcome(word: str) -> str:
    return f'<span class="{word}">{word.replace("_", " ")}</span>'


def _activations(activations: Mapping[str, Any]) -> Iterable[str]:
    yield "<h2>How far apart the prompts are inside the model</h2>"
    share = activations["alignment"]["mean_share_aligned"]
    yield (
        f"<p>{activations['pairs']} pairs from {activations['templates']} templates, "
        f"{activations['control_pairs']} control pairs; {share:.1%} of the tokens could be compared.</p>"
    )
    entries = {"overall": activations["overall"], **activations["components"]}
    yield _table(
        "Mean |activation 2 − activation 1| from the first difference on, with 95 % intervals (bootstrap "
        "over templates); effect: as a multiple of the control pairs' difference",
        ("component", "mean difference", "control pairs", "effect", "above noise", "minimum detectable"),
        [
            (
                escape(name),
                _interval(entry),
                _number(entry.get("noise_floor")),
                _interval(entry.get("effect")),
                _number(entry.get("above_noise")),
                _number(entry["minimum_detectable"]),
            )
            for name, entry in entries.items()
        ],
    )


def _comparison(comparison: Mapping[str, Any]) -> Iterable[str]:
    yield "<h2>Compared with the baseline</h2>"
    if "components" in comparison:
        yield f"<p>Overall is over {_compared(comparison['compared'])}.</p>"
        entries = {"overall": comparison["overall"], **comparison["components"]}
        yield _table(
            "Mean difference; the outcome is judged by the relative change against a margin of "
            f"{comparison['margin']:g}",
            ("component", "before", "after", "relative change", "outcome"),
            [
                (
                    escape(name),
                    _number(entry["before"]),
                    _number(entry["after"]),
                    _interval(entry["relative_change"]),
                    _outcome(entry["outcome"]),
                )
                for name, entry in entries.items()
            ],
        )
        return
    entries = {"overall": comparison["overall"], **comparison["categories"]}
    yield _table(
        "Share of stereotypes preferred (of StereoSet averaged over targets, as ss); p of McNemar's test, "
        "Holm's across categories; the outcome is "
        f"judged by the change of the distance from one half against a margin of {comparison['margin']:g}",
        (
            "category",
            "items",
            "before",
            "after",
            "gained / lost",
            "p",
            "p (Holm)",
            "change of |share − ½|",
            "outcome",
        ),
        [
            (
                escape(name),
                str(entry["items"]),
                f"{entry['before']:.1%}",
                f"{entry['after']:.1%}",
                f"{entry['to_stereotype']} / {entry['from_stereotype']}",
                _number(entry["p_value"]),
                _number(entry.get("p_holm")),
                _interval(entry["distance_from_half"]),
                _outcome(entry["outcome"]),
            )
            for name, entry in entries.items()
        ],
    )


def _compared(compared: Mapping[str, Any]) -> str:
    if not compared["components"]:
        return "nothing: no component has the same size in both models"
    before, after = len(compared["layers_before"]), len(compared["layers_after"])
    names = escape(", ".join(compared["components"]))
    return f"{names} ({before} layer{'s' * (before != 1)} before, {after} after)"


def _neurons(neurons: Mapping[str, Any]) -> Iterable[str]:
    yield "<h2>Neurons</h2>"
    units = f"{neurons['units']} {neurons['unit']}{'s' * (neurons['units'] != 1)}"
    if neurons["tested"]:
        dependent = " that are not independent" if neurons["unit"] == "pair" else ""
        yield (
            f"<p>{neurons['significant']} of {neurons['tested']} neurons react to the attribute consistently "
            f"(false discovery rate {neurons['false_discovery_rate']:.0%}, {escape(units)}{dependent}).</p>"
        )
    else:
        yield f"<p>Ranked by effect and not tested: {escape(units)} are too few.</p>"
    yield _table(
        "Mean difference is signed (second − first prompt); output effect is it times the norm of the "
        "neuron's output weights",
        ("layer · neuron", "mean difference", "output effect", "q", "significant", "same sign"),
        [
            (
                f"{entry['layer']} · {entry['neuron']}",
                _number(entry["mean_difference"]),
                _number(entry["output_effect"]),
                _number(entry["q_value"]),
                _number(entry["significant"]),
                f"{entry['consistency']:.0%}",
            )
            for entry in neurons["neurons"][:20]
        ],
    )


def _behaviour(behaviour: Mapping[str, Any], baseline: Mapping[str, Any] | None) -> Iterable[str]:
    if behaviour["suite"] == "crows_pairs":
        yield "<h2>CrowS-Pairs</h2>"
        beside = f" (baseline {_number(baseline['perplexity'])})" if baseline else ""
        yield (
            f"<p>Scored by {escape(behaviour['scoring'])}; perplexity {_number(behaviour['perplexity'])}"
            f"{beside}. {_detectable(behaviour)}</p>"
        )
        entries = {"overall": behaviour["score"], **behaviour["categories"]}
        yield _table(
            "How often the more stereotyping sentence is the likelier one, percent (50: as often as not), "
            "with Wilson's 95 % intervals",
            ("category", "items", "score"),
            [(escape(name), str(entry["items"]), _interval(entry)) for name, entry in entries.items()],
        )
        return
    yield f"<h2>StereoSet</h2><p>Scored by {escape(behaviour['scoring'])}. {_detectable(behaviour)}</p>"
    rows = {"overall": behaviour["overall"], **behaviour["kinds"], **behaviour["categories"]}
    if baseline:
        rows = {"overall": rows.pop("overall"), "baseline, overall": baseline["overall"], **rows}
    yield _table(
        "Percent; ss: stereotype over anti-stereotype (50: as often as not), lms: meaningful over unrelated, "
        "both averaged over targets, with 95 % intervals of a bootstrap over them; over items: Wilson's",
        ("part", "items", "ss", "lms", "icat", "ss over items", "lms over items"),
        [
            (
                escape(name),
                str(entry["items"]),
                *(
                    _interval(
                        {"value": entry[name], "low": entry[f"{name}_low"], "high": entry[f"{name}_high"]}
                    )
                    for name in ("ss", "lms", "icat")
                ),
                _interval(entry["ss_micro"]),
                _interval(entry["lms_micro"]),
            )
            for name, entry in rows.items()
        ],
    )


def _detectable(behaviour: Mapping[str, Any]) -> str:
    return (
        f"With {behaviour['items']} items, a preference {_number(behaviour['minimum_detectable'])} points "
        "from 50 would be found with 80 % power."
    )


def _pairs(profile: Profile) -> Iterable[str]:
    yield "<h2>Prompt pairs</h2>"
    shown = profile.pairs[:100]
    yield _table(
        f"{len(shown)} of {len(profile.pairs)} pairs",
        ("pair", "prompt 1", "prompt 2", "tokens compared"),
        [
            (
                f"pair_{pair.index + 1}",
                escape(pair.first.text),
                escape(pair.second.text),
                f"{pair.alignment.share_aligned:.0%}",
            )
            for pair in shown
        ],
    )


def _figures(drawn: Sequence[Path], figure_format: str) -> Iterable[str]:
    paths = sorted(drawn, key=lambda path: (path.stem.split("_pair")[-1].zfill(9), path.name))
    if not paths:
        return
    if figure_format not in ("png", "svg"):
        yield (
            f"<h2>Figures</h2><p>{len(paths)} {figure_format} files lie beside this report, which can't show "
            f"them: {escape(paths[0].name)} … {escape(paths[-1].name)}.</p>"
        )
        return
    shown = min(len(paths), MOST_FIGURES)
    yield f"<h2>Figures</h2><p>{shown} of {len(paths)}; all lie beside this report.</p>"
    for path in paths[:MOST_FIGURES]:
        data, kind = _embedded(path)
        yield (
            f'<figure><img loading="lazy" alt="{escape(path.stem)}" src="data:{kind};base64,{data}">'
            f"<figcaption>{escape(path.name)}</figcaption></figure>"
        )


def _embedded(path: Path) -> tuple[str, str]:
    """Base64 of a figure; pictures are scaled down to the width of a page, the files keep their 300 dpi."""
    if path.suffix == ".svg":
        return base64.b64encode(path.read_bytes()).decode("ascii"), "image/svg+xml"
    from io import BytesIO

    from PIL import Image

    with Image.open(path) as image:
        reduced = image.convert("RGB").resize(
            (_WIDTH, round(image.height * _WIDTH / image.width)), Image.Resampling.BOX
        )
    buffer = BytesIO()
    reduced.quantize(128).save(buffer, "PNG", optimize=False)
    return base64.b64encode(buffer.getvalue()).decode("ascii"), "image/png"
