"""A bias job from folder to folder: figures, ``bias_metrics.json``, ``report.html``, ``metrics.json``."""

from __future__ import annotations

import gc
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from optipfair_engine.bias.prompts.questions import Questions, questions_of
from optipfair_engine.bias.prompts.suites import templates_of, texts_of
from optipfair_engine.computing.asked import computed_in, takes_compute_dtype
from optipfair_engine.errors import as_warnings
from optipfair_engine.jsonable import write_json
from optipfair_engine.notebooks import Result
from optipfair_engine.options.bias import BiasOptions
from optipfair_engine.options.suites import SUITES_FOLDER
from optipfair_engine.progress import Reporter, null_reporter
from optipfair_engine.workflow.foreseen import facts_of, refuse_missing_layers
from optipfair_engine.workflow.metrics import write_metrics

if TYPE_CHECKING:
    from optipfair_engine.bias.behaviour.scoring import Scored
    from optipfair_engine.bias.results.cause import Cause
    from optipfair_engine.bias.results.changes import Comparison
    from optipfair_engine.bias.results.continuations import ContinuationChanges
    from optipfair_engine.bias.results.differences import RankedNeurons
    from optipfair_engine.bias.results.generations import Generations
    from optipfair_engine.bias.results.result import BiasResult
    from optipfair_engine.bias.results.scores import BehaviourResult, SuiteScores
    from optipfair_engine.bias.results.suites import PairSuiteResult, SuiteResult
    from optipfair_engine.bias.statistics.profile import Profile
    from optipfair_engine.bias.statistics.significance import Array

__all__ = ["BiasOptions", "bias_checkpoint"]

PAIRS_FILE: Final = "bias_metrics.json"
SUMMARY_FILE: Final = "bias_summary.json"
TEXTS_FILE: Final = "generations.jsonl"
REPORT_FILE: Final = "report.html"


@dataclass
class _Answers:
    """What one model gave."""

    name: str
    profile: Profile | None = None
    controls: Profile | None = None
    neurons: RankedNeurons | None = None
    cause: Cause | None = None
    distances: Array | None = None
    generations: Generations | None = None
    behaviour: BehaviourResult[SuiteScores] | None = None
    suites: dict[str, Scored] = field(default_factory=dict)


@takes_compute_dtype
def bias_checkpoint(
    source: Path,
    output: Path,
    options: BiasOptions,
    *,
    baseline: Path | None = None,
    model_name: str | None = None,
    baseline_name: str | None = None,
    suites_folder: Path = SUITES_FOLDER,
    report: Reporter = null_reporter,
) -> dict[str, object]:
    """Measure the bias of a model folder, and how it differs from a baseline's.

    Writes to ``output``: the figures, ``bias_metrics.json`` (the guide's metrics of every pair),
    ``bias_summary.json`` (intervals, noise floor, neurons, cause, behaviour, comparison), ``report.html``
    (self-contained), ``metrics.json``, and with ``generation`` the texts, ``generations.jsonl``.

    Args:
        source: the model folder.
        output: a folder, made if need be.
        options: what to measure.
        baseline: another model folder, asked the same; ``source`` is compared with it.
        model_name: what report and figures call the model; by default its folder or hub id.
        baseline_name: the same of the baseline.
        suites_folder: where the files of the catalogue's suites lie.
        report: progress; stages "load", "bias", "estimate", "cause", "generate", "plot", "save".

    Returns:
        Flat metrics, as in ``metrics.json``: numbers, words or null, and ``warnings`` (a list of ``code`` and
        ``message``).

    Raises:
        InvalidOptionError: an option or the suite file is wrong.
        SuiteDataError: the files of a named suite are not in the suites folder.
        CheckpointError, TokenizerError, UnsupportedModelError: a model can't be used.
    """
    started = time.perf_counter()
    refuse_missing_layers(facts_of(source), options.layers)
    questions = questions_of(options, suites_folder, baseline=baseline is not None)
    before = None
    if baseline is not None:
        # no figures, so nothing that only they have, and that the baseline may lack
        plain = options.changed(
            visualization_types=(), layers="first_middle_last", layer_types=None, neuron_ranking=False
        )
        before = _ask(baseline, questions, plain, None, baseline_name, report)
        gc.collect()
    output.mkdir(parents=True, exist_ok=True)
    after = _ask(source, questions, options, output, model_name, report)
    result = _result(after, before, questions, options)
    if after.profile is not None:
        from optipfair_engine.bias.figures.of_result import draw_result

        other = before.profile if before is not None else None
        result = draw_result(result, after.profile, other, options, output, report)
    metrics = {
        **result.flat(),
        "warnings": as_warnings(result.cautions()),
        "compute_dtype": computed_in(),
        "seconds": time.perf_counter() - started,
    }
    report("save", 0, 1, "writing tables and report")
    _write(output, after, result, metrics)
    report("save", 1, 1, "tables and report are written")
    return Result(metrics)


def _ask(
    source: Path,
    questions: Questions,
    options: BiasOptions,
    folder: Path | None,
    name: str | None,
    report: Reporter,
) -> _Answers:
    """Load a model, ask it everything, and let it go."""
    from optipfair_engine.checkpoints import model_name
    from optipfair_engine.workflow.common import load

    loaded = load(source, dtype=options.dtype, device=options.device, needs_tokenizer=True, report=report)
    answers = _Answers(name or model_name(source))
    if questions.items is not None:
        answers.behaviour = _ask_preferences(loaded.model, loaded.tokenizer, questions, report)
    elif questions.pairs:
        _ask_pairs(answers, loaded.model, loaded.tokenizer, questions, options, folder, report)
        _ask_causes(answers, loaded.model, loaded.tokenizer, questions, options, folder, report)
        _ask_to_continue(answers, loaded.model, loaded.tokenizer, questions, options, folder, report)
    for suite, items in questions.suites.items():
        answers.suites[suite] = _ask_suite(suite, loaded.model, loaded.tokenizer, items, report)
    return answers


def _ask_suite(name: str, model: Any, tokenizer: Any, items: Any, report: Reporter) -> Scored:
    from optipfair_engine.bias.behaviour.scoring import score_suite

    return score_suite(name, model, tokenizer, items, report)


def _ask_preferences(
    model: Any, tokenizer: Any, questions: Questions, report: Reporter
) -> BehaviourResult[SuiteScores]:
    from optipfair_engine.bias.behaviour.preferences import score_crows_pairs, score_stereoset

    score = score_crows_pairs if questions.suite_name == "crows_pairs" else score_stereoset
    return score(model, tokenizer, questions.items, report=report)


def _ask_pairs(
    answers: _Answers,
    model: Any,
    tokenizer: Any,
    questions: Questions,
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
        visualization_types=(options.visualization_types or ()) if folder is not None else (),
        layers=options.layers,
        layer_types=options.layer_types,
        folder=folder,
        figure_format=options.figure_format,
        templates=templates_of(questions.pairs),
        ranking=ranking,
        model_name=answers.name,
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


def _ask_causes(
    answers: _Answers,
    model: Any,
    tokenizer: Any,
    questions: Questions,
    options: BiasOptions,
    folder: Path | None,
    report: Reporter,
) -> None:
    """Patch the model that is asked about; of a baseline, compare only what follows the two prompts."""
    if options.patching is None:
        return
    from optipfair_engine.bias.cause.patching import continuation_distances, patch_pairs

    if questions.compared:
        answers.distances = continuation_distances(model, tokenizer, texts_of(questions.pairs))
    if folder is None:
        return
    answers.cause = patch_pairs(
        model,
        tokenizer,
        texts_of(questions.pairs),
        options.patching,
        templates=templates_of(questions.pairs),
        seed=options.seed,
        report=report,
    )


def _ask_to_continue(
    answers: _Answers,
    model: Any,
    tokenizer: Any,
    questions: Questions,
    options: BiasOptions,
    folder: Path | None,
    report: Reporter,
) -> None:
    if options.generation is None:
        return
    from optipfair_engine.bias.generation.parity import compare_generations

    answers.generations = compare_generations(
        model,
        tokenizer,
        texts_of(questions.pairs),
        options.generation,
        templates=templates_of(questions.pairs),
        seed=options.seed,
        texts=folder / TEXTS_FILE if folder is not None else None,
        report=report,
    )


def _result(
    after: _Answers, before: _Answers | None, questions: Questions, options: BiasOptions
) -> BiasResult:
    from optipfair_engine.bias.results.result import BiasResult
    from optipfair_engine.bias.statistics.summary import summarize

    return BiasResult(
        model=after.name,
        baseline=before.name if before is not None else None,
        activations=(
            summarize(after.profile, after.controls, seed=options.seed) if after.profile is not None else None
        ),
        neurons=after.neurons,
        cause=after.cause,
        generations=after.generations,
        behaviour=after.behaviour.scores if after.behaviour is not None else None,
        baseline_behaviour=(
            before.behaviour.scores if before is not None and before.behaviour is not None else None
        ),
        comparison=_comparison(after, before, options) if before is not None else None,
        continuations=_continuations(after, before, options) if before is not None else None,
        suites=_suite_results(after, before, options),
        pair_suites=_pair_suites(after, before, questions, options),
    )


def _pair_suites(
    after: _Answers, before: _Answers | None, questions: Questions, options: BiasOptions
) -> tuple[PairSuiteResult, ...]:
    """What the pairs of each named suite found, by category."""
    from optipfair_engine.bias.statistics.groups import pair_suite_results

    if after.profile is None:
        return ()
    return pair_suite_results(
        questions.pairs,
        questions.controls,
        after.profile,
        after.controls,
        before.profile if before is not None else None,
        seed=options.seed,
        **_margin(options),
    )


def _suite_results(after: _Answers, before: _Answers | None, options: BiasOptions) -> tuple[SuiteResult, ...]:
    if not after.suites:
        return ()
    from optipfair_engine.bias.behaviour.scoring import suite_result

    earlier = before.suites if before is not None else {}
    return tuple(
        suite_result(name, found, earlier.get(name), seed=options.seed, margin=options.margin)
        for name, found in after.suites.items()
    )


def _margin(options: BiasOptions) -> dict[str, float]:
    return {} if options.margin is None else {"margin": options.margin}


def _comparison(after: _Answers, before: _Answers, options: BiasOptions) -> Comparison | None:
    from optipfair_engine.bias.statistics.comparison import compare_behaviour, compare_profiles

    margin = _margin(options)
    if before.profile is not None and after.profile is not None:
        return compare_profiles(before.profile, after.profile, seed=options.seed, **margin)
    if before.behaviour is not None and after.behaviour is not None:
        return compare_behaviour(before.behaviour, after.behaviour, seed=options.seed, **margin)
    return None


def _continuations(after: _Answers, before: _Answers, options: BiasOptions) -> ContinuationChanges | None:
    """Before and after of what follows the two prompts of a pair, where that was asked."""
    if after.profile is None or (options.patching is None and options.generation is None):
        return None
    from optipfair_engine.bias.statistics.continuations import continuation_changes

    distances = generations = None
    if before.distances is not None and after.distances is not None:
        distances = before.distances, after.distances
    if before.generations is not None and after.generations is not None:
        generations = before.generations, after.generations
    templates = [pair.template for pair in after.profile.pairs]
    return continuation_changes(
        templates, distances=distances, generations=generations, seed=options.seed, **_margin(options)
    )


def _write(output: Path, answers: _Answers, result: BiasResult, metrics: dict[str, object]) -> None:
    from optipfair_engine.bias.report import write_report
    from optipfair_engine.bias.statistics.profile import write_pair_metrics
    from optipfair_engine.bias.wording import conclusion

    found = {**result.as_dict(), "conclusion": conclusion(result), "warnings": list(result.warnings)}
    write_json(output / SUMMARY_FILE, found)
    if answers.profile is not None:
        write_pair_metrics(answers.profile, output / PAIRS_FILE)
    elif result.behaviour is not None:
        write_json(output / PAIRS_FILE, result.behaviour.as_dict())
    else:
        write_json(output / PAIRS_FILE, {found.name: found.scores.as_dict() for found in result.suites})
    write_metrics(output, metrics)
    write_report(result, answers.profile, output / REPORT_FILE)


def read_findings(output: Path) -> tuple[str, list[str]]:
    """The conclusion of a finished analysis, in one sentence, and its warnings."""
    found = json.loads((output / SUMMARY_FILE).read_text(encoding="utf-8"))
    return found["conclusion"], found["warnings"]
