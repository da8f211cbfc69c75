"""``evaluate``: perplexity over a text, sentences, and speed; of one model, or of one beside a baseline."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from optipfair_engine.computing.asked import computed_in, takes_compute_dtype
from optipfair_engine.errors import Caution, InvalidOptionError, as_warnings
from optipfair_engine.evaluation.benchmarks import (
    Way,
    compare_models_inference,
    generate_text,
    time_inference,
)
from optipfair_engine.evaluation.perplexity import score_windows, text_windows
from optipfair_engine.notebooks import Result
from optipfair_engine.options.calibration import WINDOW_LENGTH, WINDOWS
from optipfair_engine.options.errors import engines_errors
from optipfair_engine.options.evaluation import Dynamic, check_dynamic, dynamic_of
from optipfair_engine.options.words import ComputeDtype
from optipfair_engine.progress import Reporter, null_reporter
from optipfair_engine.workflow.common import LoadedModel, load
from optipfair_engine.workflow.dynamic import LONG_PROMPTS, DynamicEvaluation
from optipfair_engine.workflow.foreseen import facts_of, refuse_long_windows, refuse_undynamic
from optipfair_engine.workflow.metrics import write_metrics

#: What is timed where no prompt is given.
DEFAULT_PROMPTS = ("Paris is the capital of", "The speed of light is approximately")

OTHER_TOKENS = (
    "the two models cut the text into different tokens, so their perplexities per token can't be compared: "
    "there is no perplexity_ratio"
)


@takes_compute_dtype
def evaluate_checkpoint(
    source: Path,
    output: Path | None,
    *,
    baseline: Path | None = None,
    texts: Sequence[str] | None = None,
    prompts: Sequence[str] | None = None,
    timing: bool = False,
    dynamic: Dynamic | Mapping[str, Any] | None = None,
    max_length: int = WINDOW_LENGTH,
    num_windows: int | None = WINDOWS,
    max_new_tokens: int = 50,
    num_runs: int = 5,
    warmup_runs: int = 2,
    dtype: str = "auto",
    device: str = "cpu",
    compute_dtype: ComputeDtype = "auto",
    report: Reporter = null_reporter,
) -> dict[str, Any]:
    """Evaluate a checkpoint; writes ``metrics.json`` and plots into ``output``.

    Args:
        source: the model.
        output: where results go; ``None`` writes nothing.
        baseline: another model, evaluated the same way in the same run.
        texts: what perplexity is measured on.
        prompts: what the models continue, greedily; also what is timed.
        timing: measure the speed of generation.
        dynamic: measure dynamic pruning of the model, too: ``keep_percentage``.
        max_length: tokens per perplexity window.
        num_windows: how many windows at most, spread over the text.
        max_new_tokens: tokens per generation.
        num_runs: timed runs a prompt.
        warmup_runs: runs before them that don't count.
        dtype: of the loaded models.
        device: where they run.
        compute_dtype: what perplexity is computed in; what is generated and timed runs as users run it.
        report: progress, stages "load", "evaluate", "plot".

    Returns:
        Flat metrics: ``perplexity``, ``perplexity_baseline``, ``perplexity_ratio``,
        ``evaluation_max_length``, ``evaluation_windows``, ``evaluation_tokens``, ``tokens_per_second``,
        ``tokens_per_second_ratio``, ``speedup`` with its 10th and 90th percentile and others, as far as asked
        for; with ``dynamic`` those that begin with this word (docs/pruning.md); ``generations`` for prompts;
        ``warnings`` (each a ``code`` and a ``message``) if there are any.

    Raises:
        InvalidOptionError: nothing to evaluate, or windows longer than a model's positions.
    """
    if not (texts or prompts or timing):
        raise InvalidOptionError("give texts, prompts or timing: otherwise there is nothing to evaluate")
    start = time.perf_counter()
    generates = bool(prompts) or timing
    keep = _checked(dynamic, source, max_length if texts else None, max_new_tokens if generates else None)
    for folder in (source, baseline):
        if folder is not None and texts:
            refuse_long_windows(facts_of(folder), {"max_length": max_length})
    models = {"": load(source, dtype=dtype, device=device, needs_tokenizer=True, report=report)}
    if baseline is not None:
        models["_baseline"] = load(baseline, dtype=dtype, device=device, needs_tokenizer=True, report=report)
    cut = _windows(models, texts, max_length, num_windows) if texts else {}
    pruned = None if keep is None else DynamicEvaluation(models, keep, cut, prompts or ())
    metrics: dict[str, Any] = {}
    if cut:
        metrics |= {"evaluation_max_length": max_length, **_perplexities(models, cut, report)}
    if prompts:
        metrics["generations"] = _generations(models, pruned, prompts, max_new_tokens)
    runs = (max_new_tokens, num_runs, warmup_runs)
    timed = prompts or (DEFAULT_PROMPTS if pruned is None else LONG_PROMPTS)
    if timing:
        metrics |= _speeds(models, timed, *runs, report)
    if pruned is not None:
        metrics |= pruned.metrics(timed if timing else (), *runs, report, metrics.get("warnings", ()))
    if computed_in() is not None:
        metrics["compute_dtype"] = computed_in()
    metrics["seconds"] = round(time.perf_counter() - start, 3)
    if output is None:
        return Result(metrics)
    output.mkdir(parents=True, exist_ok=True)
    _write_plots(output, metrics, report)
    return write_metrics(output, metrics)


def _checked(
    dynamic: Dynamic | Mapping[str, Any] | None, source: Path, window: int | None, new_tokens: int | None
) -> float | None:
    """How many neurons dynamic pruning shall keep, in per cent; None if it isn't asked for."""
    chosen = dynamic_of(dynamic)
    if chosen is None:
        return None
    with engines_errors():
        check_dynamic(chosen, window=window, new_tokens=new_tokens)
    refuse_undynamic(facts_of(source))
    return chosen.keep_percentage


def _windows(
    models: Mapping[str, LoadedModel], texts: Sequence[str], max_length: int, num_windows: int | None
) -> dict[str, list[list[int]]]:
    """The text as each model's own tokens, in windows."""
    return {
        suffix: text_windows(loaded.tokenizer, list(texts), max_length, num_windows)
        for suffix, loaded in models.items()
    }


def _perplexities(
    models: Mapping[str, LoadedModel], cut: Mapping[str, list[list[int]]], report: Reporter
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for suffix, windows in cut.items():
        result = score_windows(models[suffix].model, windows, report)
        found |= {
            f"perplexity{suffix}": result.perplexity,
            f"evaluation_windows{suffix}": result.windows,
            f"evaluation_tokens{suffix}": result.tokens,
        }
    if "_baseline" not in cut:
        return found
    if cut[""] == cut["_baseline"]:
        found["perplexity_ratio"] = found["perplexity"] / found["perplexity_baseline"]
    else:
        found["warnings"] = as_warnings([Caution("tokens_differ", OTHER_TOKENS)])
    return found


def _generations(
    models: Mapping[str, LoadedModel],
    pruned: DynamicEvaluation | None,
    prompts: Sequence[str],
    max_new_tokens: int,
) -> list[dict[str, str]]:
    """Each prompt with what each model makes of it, and the first one pruned dynamically."""
    ways = {suffix: (Way(loaded.model), loaded.tokenizer) for suffix, loaded in models.items()}
    if pruned is not None:
        ways["_dynamic"] = (Way(models[""].model, pruned.block), models[""].tokenizer)
    found = [{"prompt": prompt} for prompt in prompts]
    for suffix, (way, tokenizer) in ways.items():
        for generation in found:
            with way.block():
                text = generate_text(way.model, tokenizer, generation["prompt"], max_new_tokens)
            generation[f"text{suffix}"] = text
    return found


def _speeds(
    models: dict[str, LoadedModel],
    prompts: Sequence[str],
    max_new_tokens: int,
    num_runs: int,
    warmup_runs: int,
    report: Reporter,
) -> dict[str, Any]:
    main = models[""]
    if "_baseline" not in models:
        timings = []
        for number, prompt in enumerate(prompts, 1):
            timings.append(
                time_inference(main.model, main.tokenizer, prompt, max_new_tokens, num_runs, warmup_runs)
            )
            report("evaluate", number, len(prompts), f"timed prompt {number} of {len(prompts)}")
        mean = sum(timing["avg_time"] for timing in timings) / len(timings)
        tokens = timings[0]["generated_tokens"]
        return {"avg_time": mean, "tokens_per_second": tokens / mean, "timings": timings}
    result = compare_models_inference(
        models["_baseline"].model,
        main.model,
        main.tokenizer,
        prompts,
        max_new_tokens,
        num_runs,
        warmup_runs,
        report=report,
    )
    fast, slow = result["avg_pruned_tokens_per_second"], result["avg_original_tokens_per_second"]
    return {
        "avg_time": result["avg_pruned_time"],
        "tokens_per_second": fast,
        "tokens_per_second_baseline": slow,
        "tokens_per_second_ratio": fast / slow,
        **{name: result[name] for name in ("speedup", "speedup_low", "speedup_high")},
        "comparison": result,
    }


def _write_plots(output: Path, metrics: dict[str, Any], report: Reporter) -> None:
    from optipfair_engine.figures import draw_comparison, save

    for name, label, better in (
        ("perplexity", "perplexity", "lower"),
        ("tokens_per_second", "tokens per second, generating", "higher"),
        ("dynamic_perplexity", "perplexity of continuations", "lower"),
        ("dynamic_tokens_per_second", "tokens per second, generating, pruned by the prompt", "higher"),
    ):
        if name not in metrics:
            continue
        bars = {
            "baseline": metrics.get(f"{name}_baseline"),
            "dense": metrics.get(f"{name}_dense"),
            "dynamic" if name.startswith("dynamic") else "model": metrics[name],
        }
        known = {bar: value for bar, value in bars.items() if value is not None}
        title = _finding(label.partition(",")[0], known)
        figure = draw_comparison(known, title=title, label=f"{label} ({better} is better)")
        save(figure, output / f"{name}.png")
    report("plot", 1, 1, "plots")


def _finding(label: str, bars: Mapping[str, float]) -> str:
    """What a figure of one or more models says: the last one's value, beside the first's."""
    items = list(bars.items())
    (first, before), (last, after) = items[0], items[-1]
    words = label[0].upper() + label[1:]
    if first == last or not before:
        return f"{words}: {after:,.4g}"
    return f"{words} of the {last}: {after / before:.3g} times that of the {first}"
