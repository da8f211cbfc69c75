"""A bias job from folder to folder: figures, ``bias_metrics.json``, ``report.html``, ``metrics.json``."""

from __future__ import annotations

import gc
import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from optipfair_engine.bias.defaults import (
    DEFAULT_CONTROL_PAIRS,
    DEFAULT_PROMPT_PAIRS,
    fill_template,
)
from optipfair_engine.bias.prompts.suites import PairItem, pair_items, templates_of, texts_of
from optipfair_engine.computing.asked import computed_in, takes_compute_dtype
from optipfair_engine.errors import InvalidOptionError
from optipfair_engine.jsonable import write_json
from optipfair_engine.options.bias import BiasOptions
from optipfair_engine.progress import Reporter, null_reporter

if TYPE_CHECKING:
    from optipfair_engine.bias.behaviour.preferences import BehaviourResult
    from optipfair_engine.bias.statistics.profile import Profile

METRICS_FILE: Final = "metrics.json"
PAIRS_FILE: Final = "bias_metrics.json"
SUMMARY_FILE: Final = "bias_summary.json"
REPORT_FILE: Final = "report.html"


@dataclass(frozen=True)
class _Questions:
    """What to ask the model: pairs and controls, or a benchmark's items."""

    pairs: list[PairItem]
    controls: list[PairItem]
    items: Any = None
    suite_name: str | None = None


@dataclass
class _Answers:
    """What one model gave."""

    name: str
    profile: Profile | None = None
    controls: Profile | None = None
    neurons: dict[str, Any] | None = None
    behaviour: BehaviourResult | None = None


@takes_compute_dtype
def bias_checkpoint(
    source: Path,
    output: Path,
    options: BiasOptions,
    *,
    baseline: Path | None = None,
    report: Reporter = null_reporter,
) -> dict[str, object]:
    """Measure the bias of a model folder, and how it differs from a baseline's.

    Writes to ``output``: the figures, ``bias_metrics.json`` (the guide's metrics of every pair),
    ``bias_summary.json`` (intervals, noise floor, neurons, behaviour, comparison), ``report.html`` (self-
    contained) and ``metrics.json``.

    Args:
        source: the model folder.
        output: a folder, made if need be.
        options: what to measure.
        baseline: another model folder, asked the same; ``source`` is compared with it.
        report: progress; stages "load", "bias", "plot".

    Returns:
        Flat metrics, as in ``metrics.json``: numbers, words or null.

    Raises:
        InvalidOptionError: an option or the suite file is wrong.
        CheckpointError, TokenizerError, UnsupportedModelError: a model can't be used.
    """
    started = time.perf_counter()
    questions = _questions(options)
    before = None
    if baseline is not None:
        # no figures, so nothing that only they have, and that the baseline may lack
        plain = options.changed(
            visualization_types=(),
            layers="first_middle_last",
            layer_types=None,
            neuron_ranking=False,
        )
        before = _ask(baseline, questions, plain, None, report)
        gc.collect()
    output.mkdir(parents=True, exist_ok=True)
    after = _ask(source, questions, options, output, report)
    summary = _summary(after, before, options)
    metrics = {**_flat(summary), "compute_dtype": computed_in(), "seconds": time.perf_counter() - started}
    _write(output, after, summary, metrics, options)
    return metrics


def _questions(options: BiasOptions) -> _Questions:
    controls = pair_items(options.control_pairs or (), "Control")
    if options.suite is not None:
        return _suite_questions(options, options.suite, controls)
    if options.template is not None and options.attributes is not None:
        if len(set(options.attributes)) < 2:
            raise InvalidOptionError("attributes need at least two different words")
        pairs = [
            PairItem(fill_template(options.template, a), fill_template(options.template, b), options.template)
            for a, b in combinations(dict.fromkeys(options.attributes), 2)
        ]
        return _Questions(pairs, controls)
    if options.prompt_pairs is not None:
        return _Questions(pair_items(options.prompt_pairs, "Prompt"), controls)
    return _Questions(
        pair_items(DEFAULT_PROMPT_PAIRS, "Prompt"),
        controls or pair_items(DEFAULT_CONTROL_PAIRS, "Control"),
    )


def _suite_questions(options: BiasOptions, path: Path, controls: list[PairItem]) -> _Questions:
    from optipfair_engine.bias.prompts.suites import CrowsItem, read_suite

    items = read_suite(path)
    if isinstance(items[0], PairItem):
        return _Questions([item for item in items if isinstance(item, PairItem)], controls)
    asked = {
        "control_pairs": bool(controls),
        "neuron_ranking": options.neuron_ranking,
        "layer_types": options.layer_types is not None,
        "layers": options.layers != "first_middle_last",
    }
    if any(asked.values()):
        names = " and ".join(name for name, given in asked.items() if given)
        raise InvalidOptionError(f"{names}: for prompt pairs only, a preference suite has no activations")
    name = "crows_pairs" if isinstance(items[0], CrowsItem) else "stereoset"
    return _Questions([], [], items, name)


def _ask(
    source: Path, questions: _Questions, options: BiasOptions, folder: Path | None, report: Reporter
) -> _Answers:
    """Load a model, ask it everything, and let it go."""
    from optipfair_engine.bias.analysis import folder_name
    from optipfair_engine.workflow.common import load

    loaded = load(source, dtype=options.dtype, device=options.device, needs_tokenizer=True, report=report)
    answers = _Answers(folder_name(source.absolute()))
    if questions.items is not None:
        answers.behaviour = _ask_preferences(loaded.model, loaded.tokenizer, questions, report)
    else:
        _ask_pairs(answers, loaded.model, loaded.tokenizer, questions, options, folder, report)
    return answers


def _ask_preferences(model: Any, tokenizer: Any, questions: _Questions, report: Reporter) -> BehaviourResult:
    from optipfair_engine.bias.behaviour.preferences import score_crows_pairs, score_stereoset

    score = score_crows_pairs if questions.suite_name == "crows_pairs" else score_stereoset
    return score(model, tokenizer, questions.items, report=report)


def _ask_pairs(
    answers: _Answers,
    model: Any,
    tokenizer: Any,
    questions: _Questions,
    options: BiasOptions,
    folder: Path | None,
    report: Reporter,
) -> None:
    from optipfair_engine.bias.analysis import NeuronRanking, analyze_pairs

    ranking = NeuronRanking(model) if options.neuron_ranking else None
    answers.profile = analyze_pairs(
        model,
        tokenizer,
        texts_of(questions.pairs),
        visualization_types=options.visualization_types if folder is not None else (),
        layers=options.layers,
        layer_types=options.layer_types,
        folder=folder,
        figure_format=options.figure_format,
        templates=templates_of(questions.pairs),
        ranking=ranking,
        report=report,
    )
    if ranking is not None:
        answers.neurons = ranking.result()
    if questions.controls:
        answers.controls = analyze_pairs(
            model,
            tokenizer,
            texts_of(questions.controls),
            templates=templates_of(questions.controls),
            report=report,
        )


def _summary(after: _Answers, before: _Answers | None, options: BiasOptions) -> dict[str, Any]:
    from optipfair_engine.bias.statistics.comparison import compare_behaviour, compare_profiles
    from optipfair_engine.bias.statistics.summary import summarize

    margin = {} if options.margin is None else {"margin": options.margin}
    summary: dict[str, Any] = {"model": after.name, "baseline": before.name if before else None}
    if after.profile is not None:
        summary["activations"] = summarize(after.profile, after.controls, seed=options.seed)
        if before is not None and before.profile is not None:
            summary["comparison"] = compare_profiles(
                before.profile, after.profile, seed=options.seed, **margin
            )
    if after.neurons is not None:
        summary["neurons"] = after.neurons
    if after.behaviour is not None:
        summary["behaviour"] = after.behaviour.report
        if before is not None and before.behaviour is not None:
            summary["baseline_behaviour"] = before.behaviour.report
            summary["comparison"] = compare_behaviour(
                before.behaviour, after.behaviour, seed=options.seed, **margin
            )
    return summary


def _flat(summary: Mapping[str, Any]) -> dict[str, object]:
    """One level of numbers for gates: no name here means two things."""
    flat: dict[str, object] = {}
    if (activations := summary.get("activations")) is not None:
        flat.update(_flat_activations(activations))
    if (neurons := summary.get("neurons")) is not None:
        flat["neurons_tested"] = neurons["tested"]
        flat["neurons_significant"] = neurons["significant"] if neurons["tested"] else None
    if (behaviour := summary.get("behaviour")) is not None:
        flat.update(_flat_behaviour(behaviour))
        if (baseline := summary.get("baseline_behaviour")) is not None:
            flat.update({f"{name}_baseline": value for name, value in _scores(baseline).items()})
    if (comparison := summary.get("comparison")) is not None:
        overall = comparison["overall"]
        flat["outcome"] = overall["outcome"]
        change = overall.get("relative_change", overall.get("distance_from_half"))
        flat["bias_change"] = None if change is None else change["value"]
        flat["bias_change_low"] = None if change is None else change["low"]
        flat["bias_change_high"] = None if change is None else change["high"]
        if "p_value" in overall:
            flat["mcnemar_p"] = overall["p_value"]
    return flat


def _flat_activations(activations: Mapping[str, Any]) -> dict[str, object]:
    overall = activations["overall"]
    effect = overall.get("effect") or {}
    return {
        "pairs": activations["pairs"],
        "templates": activations["templates"],
        "control_pairs": activations["control_pairs"],
        "mean_difference": overall["value"],
        "mean_difference_low": overall["low"],
        "mean_difference_high": overall["high"],
        "minimum_detectable": overall["minimum_detectable"],
        **{name: overall.get(name) for name in ("noise_floor", "noise_floor_low", "noise_floor_high")},
        "effect_over_noise": effect.get("value"),
        "effect_over_noise_low": effect.get("low"),
        "effect_over_noise_high": effect.get("high"),
        "share_aligned": activations["alignment"]["mean_share_aligned"],
    }


def _flat_behaviour(behaviour: Mapping[str, Any]) -> dict[str, object]:
    flat: dict[str, object] = {"items": behaviour["items"], **_scores(behaviour)}
    if behaviour["suite"] == "crows_pairs":
        limits = {f"crows_pairs_score_{end}": behaviour["score"][end] for end in ("low", "high")}
    else:
        overall, names = behaviour["overall"], ("ss", "lms", "icat")
        limits = {
            f"stereoset_{name}_{end}": overall[f"{name}_{end}"] for name in names for end in ("low", "high")
        }
    return {**flat, **limits}


def _scores(behaviour: Mapping[str, Any]) -> dict[str, object]:
    """A suite's scores, without limits."""
    if behaviour["suite"] == "crows_pairs":
        return {"crows_pairs_score": behaviour["score"]["value"], "perplexity": behaviour["perplexity"]}
    return {f"stereoset_{name}": behaviour["overall"][name] for name in ("ss", "lms", "icat")}


def _write(
    output: Path, answers: _Answers, summary: dict[str, Any], metrics: dict[str, object], options: BiasOptions
) -> None:
    from optipfair_engine.bias.report import write_report
    from optipfair_engine.bias.statistics.profile import write_pair_metrics

    written = write_json(output / SUMMARY_FILE, summary)
    if answers.profile is not None:
        write_pair_metrics(answers.profile, output / PAIRS_FILE)
    else:
        write_json(output / PAIRS_FILE, written["behaviour"])
    write_json(output / METRICS_FILE, metrics)
    write_report(written, answers.profile, output, output / REPORT_FILE, options.figure_format)
