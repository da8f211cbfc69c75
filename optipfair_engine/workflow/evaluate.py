"""``evaluate``: perplexity over a text, sentences, and speed; of one model, or of one beside a baseline."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from optipfair_engine.computing.asked import computed_in, takes_compute_dtype
from optipfair_engine.errors import Caution, InvalidOptionError, as_warnings
from optipfair_engine.evaluation.benchmarks import compare_models_inference, generate_text, time_inference
from optipfair_engine.evaluation.perplexity import score_windows, text_windows
from optipfair_engine.options.calibration import WINDOW_LENGTH, WINDOWS
from optipfair_engine.options.words import ComputeDtype
from optipfair_engine.progress import Reporter, null_reporter
from optipfair_engine.workflow.common import LoadedModel, load
from optipfair_engine.workflow.foreseen import facts_of, refuse_long_windows
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
        for; ``generations`` for prompts; ``warnings`` (each a ``code`` and a ``message``) if there are any.

    Raises:
        InvalidOptionError: nothing to evaluate, or windows longer than a model's positions.
    """
    if not (texts or prompts or timing):
        raise InvalidOptionError("give texts, prompts or timing: otherwise there is nothing to evaluate")
    start = time.perf_counter()
    for folder in (source, baseline):
        if folder is not None and texts:
            refuse_long_windows(facts_of(folder), {"max_length": max_length})
    models = {"": load(source, dtype=dtype, device=device, needs_tokenizer=True, report=report)}
    if baseline is not None:
        models["_baseline"] = load(baseline, dtype=dtype, device=device, needs_tokenizer=True, report=report)
    metrics: dict[str, Any] = {}
    if texts:
        metrics |= _perplexities(models, texts, max_length, num_windows, report)
    if prompts:
        metrics["generations"] = _generations(models, prompts, max_new_tokens)
    if timing:
        metrics |= _speeds(models, prompts or DEFAULT_PROMPTS, max_new_tokens, num_runs, warmup_runs, report)
    if computed_in() is not None:
        metrics["compute_dtype"] = computed_in()
    metrics["seconds"] = round(time.perf_counter() - start, 3)
    if output is None:
        return metrics
    output.mkdir(parents=True, exist_ok=True)
    _write_plots(output, metrics, report)
    return write_metrics(output, metrics)


def _perplexities(
    models: dict[str, LoadedModel],
    texts: Sequence[str],
    max_length: int,
    num_windows: int | None,
    report: Reporter,
) -> dict[str, Any]:
    found: dict[str, Any] = {"evaluation_max_length": max_length}
    cut = {
        suffix: text_windows(loaded.tokenizer, list(texts), max_length, num_windows)
        for suffix, loaded in models.items()
    }
    for suffix, windows in cut.items():
        result = score_windows(models[suffix].model, windows, report)
        found[f"perplexity{suffix}"] = result.perplexity
        found |= {
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
    models: dict[str, LoadedModel], prompts: Sequence[str], max_new_tokens: int
) -> list[dict[str, str]]:
    """Each prompt with what each model makes of it."""
    return [
        {"prompt": prompt}
        | {
            f"text{suffix}": generate_text(loaded.model, loaded.tokenizer, prompt, max_new_tokens)
            for suffix, loaded in models.items()
        }
        for prompt in prompts
    ]


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
    from optipfair_engine.figures import plot_comparison

    for name, label, title in (
        ("perplexity", "perplexity", "Perplexity (lower is better)"),
        ("tokens_per_second", "tokens per second", "Speed of generation"),
    ):
        if name not in metrics:
            continue
        bars = {"baseline": metrics.get(f"{name}_baseline"), "model": metrics[name]}
        plot_comparison(
            output / f"{name}.png", {k: v for k, v in bars.items() if v is not None}, title=title, label=label
        )
    report("plot", 1, 1, "plots")
