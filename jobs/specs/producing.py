"""Which spec produces a metric: a gate on one that can't come would be inconclusive, and is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from jobs.specs.kinds import PipelineSpec, Spec
from jobs.specs.metrics import GENERATION_CHANGES, known_metrics
from optipfair_engine.options.suites import pair_suites, parse_metric


@dataclass(frozen=True)
class Condition:
    """What a spec must have for some metrics: `wanted` names it in the user's words."""

    holds: Callable[[Any], bool]
    wanted: str


def _has(name: str, wanted: str | None = None) -> Condition:
    return Condition(lambda spec: getattr(spec, name) not in (None, False), wanted or name)


def _has_controls(spec: Any) -> bool:
    if pair_suites(spec.suites or ()):
        return True
    sources = (spec.prompt_pairs, spec.template, spec.suite, spec.suites)
    defaults = all(source is None for source in sources)
    return spec.control_pairs is not None or defaults


_EVALUATION, _HEALING, _SUITE, _BASELINE = (
    _has(name) for name in ("evaluation", "healing", "suite", "baseline")
)
_CALIBRATED = Condition(
    lambda spec: spec.calibration is not None or spec.plan is not None, "calibration (or a calibrated plan)"
)
_OWN_TEXT = Condition(lambda spec: spec.writes_text, 'calibration with source "model" or mix_self')
_RECONSTRUCTED = _has("reconstruction")
_DEPTH = Condition(lambda spec: spec.pruning_type == "DEPTH" or spec.plan is not None, 'pruning_type "DEPTH"')
_EXPERTS = Condition(
    lambda spec: spec.pruning_type == "EXPERTS" or spec.plan is not None, 'pruning_type "EXPERTS"'
)
_NO_EXPERTS = Condition(
    lambda spec: spec.pruning_type != "EXPERTS",
    'a pruning_type that can choose without text (not "EXPERTS")',
)
_BY_EFFECT = Condition(
    lambda spec: spec.fairness is not None and spec.fairness.by == "effect", 'fairness with by "effect"'
)
_CONTROLS = Condition(_has_controls, "control_pairs")
_TEXT, _TIMING = _has("text"), _has("timing", "timing true")
_DYNAMIC = _has("dynamic")
_RANKING = _has("neuron_ranking", "neuron_ranking true")
_PATCHING, _GENERATION = _has("patching"), _has("generation")
_SAMPLES = Condition(
    lambda spec: spec.generation is None or spec.generation.samples > 1, "generation with at least 2 samples"
)

_CONDITIONS: dict[str, dict[str, tuple[Condition, ...]]] = {
    "prune": {
        **dict.fromkeys(("perplexity_dense", "perplexity_pruned", "perplexity_ratio"), (_EVALUATION,)),
        **dict.fromkeys(("evaluation_max_length", "evaluation_windows"), (_EVALUATION,)),
        **dict.fromkeys(("evaluation_tokens", "tokens_per_second_ratio"), (_EVALUATION,)),
        **dict.fromkeys(("predicted_error_uniform", "predicted_error_allocated"), (_CALIBRATED,)),
        "perplexity_static_same_size": (_EVALUATION, _CALIBRATED, _NO_EXPERTS),
        "perplexity_before_healing": (_EVALUATION, _HEALING),
        **dict.fromkeys(("healing_steps", "healing_seconds"), (_HEALING,)),
        **dict.fromkeys(("healing_first_loss", "healing_last_loss"), (_HEALING,)),
        **dict.fromkeys(("reconstruction_layers", "reconstruction_error_before"), (_RECONSTRUCTED,)),
        "reconstruction_error_after": (_RECONSTRUCTED,),
        **dict.fromkeys(("calibration_tokens", "calibration_tokens_per_feature"), (_CALIBRATED,)),
        "calibration_own_samples": (_OWN_TEXT,),
        **dict.fromkeys(("bias_change", "bias_against_random"), (_has("fairness"),)),
        **dict.fromkeys(("next_token_change", "next_token_against_random"), (_BY_EFFECT,)),
        **dict.fromkeys(("original_layer_count", "final_layer_count"), (_DEPTH,)),
        **dict.fromkeys(("layers_removed", "layer_reduction_percentage"), (_DEPTH,)),
        **dict.fromkeys(("original_expert_count", "final_expert_count"), (_EXPERTS,)),
    },
    "bias": {
        **dict.fromkeys(("items", "perplexity", "crows_pairs_score"), (_SUITE,)),
        **dict.fromkeys(("stereoset_ss", "stereoset_lms", "stereoset_icat"), (_SUITE,)),
        "bias_change": (_BASELINE,),
        "preference_change": (_SUITE, _BASELINE),
        **dict.fromkeys(("mcnemar_p", "perplexity_baseline"), (_SUITE, _BASELINE)),
        **dict.fromkeys(("crows_pairs_score_baseline", "stereoset_ss_baseline"), (_SUITE, _BASELINE)),
        **dict.fromkeys(("stereoset_lms_baseline", "stereoset_icat_baseline"), (_SUITE, _BASELINE)),
        **dict.fromkeys(("control_pairs", "noise_floor", "effect_over_noise"), (_CONTROLS,)),
        **dict.fromkeys(("neurons_tested", "neurons_significant"), (_RANKING,)),
        **dict.fromkeys(("patched_units", "largest_effect"), (_PATCHING,)),
        **dict.fromkeys(("generation_divergence", "generation_length_difference"), (_GENERATION,)),
        **dict.fromkeys(("generation_overlap", "generation_sentiment_difference"), (_GENERATION,)),
        "generation_overlap_within": (_GENERATION, _SAMPLES),
        **dict.fromkeys(("next_token_distance", "reaction_effect_correlation"), (_PATCHING,)),
        **dict.fromkeys(("next_token_change", "next_token_distance_baseline"), (_PATCHING, _BASELINE)),
        **dict.fromkeys(GENERATION_CHANGES, (_GENERATION, _BASELINE)),
    },
    "evaluate": {
        **dict.fromkeys(("perplexity", "evaluation_max_length"), (_TEXT,)),
        **dict.fromkeys(("evaluation_windows", "evaluation_tokens"), (_TEXT,)),
        **dict.fromkeys(("perplexity_baseline", "perplexity_ratio"), (_TEXT, _BASELINE)),
        **dict.fromkeys(("evaluation_tokens_baseline", "evaluation_windows_baseline"), (_TEXT, _BASELINE)),
        **dict.fromkeys(("tokens_per_second", "avg_time"), (_TIMING,)),
        **dict.fromkeys(("tokens_per_second_baseline", "tokens_per_second_ratio"), (_TIMING, _BASELINE)),
        "speedup": (_TIMING, _BASELINE),
        "dynamic_active_parameters": (_DYNAMIC,),
        "dynamic_parameters_baseline": (_DYNAMIC, _BASELINE),
        **dict.fromkeys(("dynamic_perplexity", "dynamic_perplexity_dense"), (_DYNAMIC, _TEXT)),
        **dict.fromkeys(("dynamic_perplexity_ratio", "dynamic_windows"), (_DYNAMIC, _TEXT)),
        "dynamic_perplexity_baseline": (_DYNAMIC, _TEXT, _BASELINE),
        "dynamic_tokens_per_second": (_DYNAMIC, _TIMING),
        "dynamic_tokens_per_second_dense": (_DYNAMIC, _TIMING),
        "dynamic_tokens_per_second_ratio": (_DYNAMIC, _TIMING),
        "dynamic_tokens_per_second_baseline": (_DYNAMIC, _TIMING, _BASELINE),
    },
}
#: What only prompt pairs give, and what only each of the published suites does.
PAIRS_ONLY = frozenset(
    {
        *("pairs", "templates", "control_pairs", "share_aligned", "mean_difference", "minimum_detectable"),
        *("noise_floor", "effect_over_noise", "neurons_tested", "neurons_significant"),
        *("generation_divergence", "generation_length_difference", "generation_overlap"),
        *("generation_overlap_within", "generation_sentiment_difference"),
        *("patched_units", "largest_effect", "next_token_distance", "reaction_effect_correlation"),
        *("next_token_change", "next_token_distance_baseline", *GENERATION_CHANGES),
    }
)
CROWS_PAIRS_ONLY = frozenset(
    name + end for name in ("crows_pairs_score", "perplexity") for end in ("", "_baseline")
)
STEREOSET_ONLY = frozenset(
    f"stereoset_{name}{end}" for name in ("ss", "lms", "icat") for end in ("", "_baseline")
)


def missing(kind: str, spec: Any, metric: str) -> list[str]:
    """What a spec (of one step) would need in order to report a metric of its kind; empty if nothing."""
    conditions = _CONDITIONS.get(kind, {}).get(metric, ())
    found = [condition.wanted for condition in conditions if not condition.holds(spec)]
    if kind == "bias" and metric in PAIRS_ONLY and spec.suites is not None and not pair_suites(spec.suites):
        found.append("prompt pairs, which these suites have none of,")
    of_suite = parse_metric(metric) if kind == "bias" else None
    if of_suite is not None:
        asked = spec.suites_asked(baseline=spec.baseline is not None)
        found += [] if of_suite.suite in asked else [f'"{of_suite.suite}" in suites']
        found += ["baseline"] if of_suite.needs_baseline and spec.baseline is None else []
    return found


def gateable(kind: str, metric: str) -> bool:
    """Whether some job of a kind reports a metric of this name."""
    return metric in known_metrics(kind) or (kind == "bias" and parse_metric(metric) is not None)


def reporting(kind: str, spec: Spec, metric: str) -> Iterator[tuple[str, str, Any, str]]:
    """The specs that a gate's metric may come from: (step or "", kind, spec, the metric's own name).

    Several where a pipeline's gate names no step.
    """
    if not isinstance(spec, PipelineSpec):
        if gateable(kind, metric):
            yield "", kind, spec, metric
        return
    for step in spec.steps:
        # a suite's metrics have dots too
        for own in dict.fromkeys((metric, metric.removeprefix(f"{step.name}."))):
            if gateable(step.kind, own):
                yield step.name, step.kind, step.spec, own


def fault_of_gate(kind: str, spec: Spec, metric: str) -> str | None:
    """Why no gate may name this metric of its kind, if none may: nothing in the spec produces it."""
    found = [(step, missing(of, part, own)) for step, of, part, own in reporting(kind, spec, metric)]
    able = [step for step, lacking in found if not lacking]
    if len(able) > 1:
        named = " or ".join(f"{step}.{metric}" for step in able)
        return f"several steps report {metric!r}: name one of them, {named}"
    if able or not found:
        return None
    step, lacking = min(found, key=lambda item: len(item[1]))
    where = f"step {step!r}" if step else "the spec"
    return f"this job would not report {metric!r}: {where} needs {' and '.join(lacking)} for it"
