"""``optipfair prune``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from optipfair_engine.cli.shared import (
    CALIBRATION,
    RUN,
    BatchSize,
    Device,
    Dtype,
    Json,
    MaxLength,
    ModelPath,
    NumSamples,
    OutputPath,
    Verbose,
    find_model,
    fresh_folder,
    parse_layers,
    read_calibration,
    read_text_file,
    refuse_unread,
)
from optipfair_engine.cli.terminal import explained, progress, show_json, show_table, warn
from optipfair_engine.errors import InvalidOptionError
from optipfair_engine.options.prune import (
    Allocation,
    AttentionUnit,
    Compensation,
    LayerSelectionMethod,
    NeuronSelectionMethod,
    Preset,
    PruneOptions,
    PruningType,
    TieBreak,
    VerifyLevel,
)

if TYPE_CHECKING:
    from optipfair_engine.workflow.prune.route import Execution

_SIZE, _WHAT = "How much goes", "What is pruned"


@explained
def prune(
    context: typer.Context,
    model_path: ModelPath,
    output_path: OutputPath,
    pruning_type: Annotated[
        PruningType, typer.Option(help="Neurons, layers or heads.", rich_help_panel=_WHAT)
    ] = "MLP_GLU",
    method: Annotated[
        NeuronSelectionMethod, typer.Option(help="How neurons are scored.", rich_help_panel=_WHAT)
    ] = "MAW",
    tie_break: Annotated[
        TieBreak,
        typer.Option(
            help="Which of equally scored neurons stay; topk: as in optipfair 0.4.2.", rich_help_panel=_WHAT
        ),
    ] = "lower_index",
    layer_indices: Annotated[
        str | None,
        typer.Option(
            help='Layers, as "2,5,8": those to remove (DEPTH), or the only ones to prune.',
            rich_help_panel=_WHAT,
        ),
    ] = None,
    layer_selection_method: Annotated[
        LayerSelectionMethod, typer.Option(help="Which layers go (DEPTH).", rich_help_panel=_WHAT)
    ] = "last",
    attention_unit: Annotated[
        AttentionUnit,
        typer.Option(help="Whole KV groups, or query heads of each (ATTENTION).", rich_help_panel=_WHAT),
    ] = "kv_group",
    preset: Annotated[
        Preset, typer.Option(help="guide: as options say; recommended: best measured.", rich_help_panel=_WHAT)
    ] = "guide",
    compensation: Annotated[
        Compensation, typer.Option(help="Refit the weights behind what goes.", rich_help_panel=_WHAT)
    ] = "none",
    allocation: Annotated[
        Allocation | None,
        typer.Option(
            help="The same width in each layer, or by importance. Default: uniform; preset: allocated.",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    pruning_percentage: Annotated[
        float | None,
        typer.Option(
            help="Percent of neurons, heads or layers. Default: 10; DEPTH: none.", rich_help_panel=_SIZE
        ),
    ] = None,
    expansion_rate: Annotated[
        float | None,
        typer.Option(help="Intermediate size, in percent of the hidden size.", rich_help_panel=_SIZE),
    ] = None,
    expansion_divisor: Annotated[
        Literal["32", "64", "128", "256"] | None,
        typer.Option(help="Round the intermediate size to a multiple.", rich_help_panel=_SIZE),
    ] = None,
    num_layers_to_remove: Annotated[
        int | None, typer.Option(help="Number of layers (DEPTH).", rich_help_panel=_SIZE)
    ] = None,
    target_parameters: Annotated[
        int | None, typer.Option(help="Parameters that the result may have.", rich_help_panel=_SIZE)
    ] = None,
    target_bytes: Annotated[
        int | None, typer.Option(help="Bytes that its weights may take.", rich_help_panel=_SIZE)
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(help='Text: .txt, or .jsonl with {"text": …} lines.', rich_help_panel=CALIBRATION),
    ] = None,
    num_samples: NumSamples = 128,
    batch_size: BatchSize = 8,
    max_length: MaxLength = 512,
    keep_statistics: Annotated[
        bool, typer.Option(help="Keep what another refit needs.", rich_help_panel=CALIBRATION)
    ] = False,
    out_of_core: Annotated[
        bool,
        typer.Option(
            "--out-of-core/--in-memory",
            help="Calibrate layer by layer from disk, with little memory.",
            rich_help_panel=CALIBRATION,
        ),
    ] = False,
    work_dir: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the state of an out-of-core run: to go on after a kill, or for another size.",
            rich_help_panel=CALIBRATION,
        ),
    ] = None,
    evaluation: Annotated[
        Path | None,
        typer.Option(help="Text to measure perplexity on, before and after.", rich_help_panel=RUN),
    ] = None,
    healing_seconds: Annotated[
        float | None, typer.Option(help="Distil for at most this long afterwards.", rich_help_panel=RUN)
    ] = None,
    fairness_pairs: Annotated[
        Path | None,
        typer.Option(
            help="Prompt pairs (as of optipfair bias): what reacts to their difference goes first. Needs "
            "--calibration.",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    fairness_weight: Annotated[
        float,
        typer.Option(help="How much that weighs against what a neuron is of use.", rich_help_panel=_WHAT),
    ] = 1.0,
    plan: Annotated[
        Path | None,
        typer.Option(
            help="Apply the plan of an earlier run (its folder), at its size or another.", rich_help_panel=RUN
        ),
    ] = None,
    verify: Annotated[
        VerifyLevel | None,
        typer.Option(
            help="How the saved model is checked. Default: structure if it is pruned by its weights alone "
            "(then it is streamed from disk to disk), else logits.",
            rich_help_panel=RUN,
        ),
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    seed: Annotated[int, typer.Option(help="Of healing and fairness.", rich_help_panel=RUN)] = 0,
    verbose: Verbose = True,
    as_json: Json = False,
) -> None:
    """Prune a model and save the result, with its plan, a model card, metrics and plots."""
    refuse_unread(
        context,
        {
            "num_samples": (calibration, "--calibration"),
            "batch_size": (calibration, "--calibration"),
            "max_length": (calibration or evaluation, "--calibration or --evaluation"),
            "seed": (healing_seconds or fairness_pairs, "--healing-seconds or --fairness-pairs"),
            "fairness_weight": (fairness_pairs, "--fairness-pairs"),
        },
    )
    depth = pruning_type == "DEPTH"
    options = PruneOptions(
        preset=preset,
        pruning_type=pruning_type,
        neuron_selection_method=method,
        pruning_percentage=None if depth else pruning_percentage,
        depth_pruning_percentage=pruning_percentage if depth else None,
        expansion_rate=expansion_rate,
        target_parameters=target_parameters,
        target_bytes=target_bytes,
        allocation=allocation,
        expansion_divisor=None if expansion_divisor is None else int(expansion_divisor),
        layer_indices=parse_layers(layer_indices),
        num_layers_to_remove=num_layers_to_remove,
        layer_selection_method=layer_selection_method,
        attention_unit=attention_unit,
        tie_break=tie_break,
        compensation=compensation,
        healing_seconds=healing_seconds,
        fairness=_fairness(fairness_pairs, fairness_weight, out_of_core or work_dir is not None),
        keep_statistics=keep_statistics,
        dtype=dtype,
        device=device,
        seed=seed,
        verify=verify or "structure",
        max_length=max_length,
        batch_size=batch_size,
        num_samples=num_samples,
    )
    metrics = _run(
        model_path,
        output_path,
        options,
        calibration,
        evaluation,
        plan,
        quiet=not verbose,
        check_more=verify is None,
        out_of_core=out_of_core or work_dir is not None,
        work=work_dir,
    )
    if as_json:
        show_json(metrics)
    else:
        _show(metrics, output_path)


def _fairness(pairs: Path | None, weight: float, out_of_core: bool) -> dict[str, object] | None:
    if pairs is None:
        return None
    if out_of_core:
        raise InvalidOptionError("--fairness-pairs runs the prompts through the whole model: not out of core")
    from optipfair_engine.bias.prompts.suites import read_pairs

    return {"prompt_pairs": read_pairs(pairs), "weight": weight}


def _run(
    model_path: str,
    output_path: Path,
    options: PruneOptions,
    calibration: Path | None,
    evaluation: Path | None,
    plan: Path | None,
    *,
    quiet: bool,
    check_more: bool,
    out_of_core: bool,
    work: Path | None,
) -> dict[str, Any]:
    from optipfair_engine.workflow.prune.route import Case, choose_route

    source = find_model(model_path)
    execution: Execution = "streamed" if out_of_core else "auto"
    if check_more and not out_of_core:
        case = Case.of(
            source, options, calibration=calibration is not None, evaluation=evaluation is not None
        )
        if choose_route(options, case).execution == "memory":
            options = dataclasses.replace(options, verify="logits")
    texts = read_text_file(evaluation)
    with fresh_folder(output_path, source) as folder, progress(quiet) as report:
        from optipfair_engine.workflow import prune_checkpoint

        samples = read_calibration(
            calibration,
            source,
            num_samples=options.num_samples or 128,
            batch_size=options.batch_size,
            max_length=options.max_length,
        )
        metrics: dict[str, Any] = prune_checkpoint(
            source,
            folder,
            options,
            report=report,
            calibration_texts=samples,
            evaluation_texts=texts,
            plan=plan,
            execution=execution,
            work=work,
        )
    return metrics


_ROWS = {
    "original_parameters": "Parameters before",
    "pruned_parameters": "Parameters after",
    "percentage_reduction": "Reduction (%)",
    "expansion_rate": "Expansion rate (%)",
    "pruned_layers": "Layers pruned",
    "layers_removed": "Layers removed",
    "final_layer_count": "Layers left",
    "perplexity_dense": "Perplexity before",
    "perplexity_pruned": "Perplexity after",
    "perplexity_static_same_size": "Perplexity, static MAW of this size",
    "perplexity_ratio": "Perplexity ratio",
    "bias_change": "Bias change, held-out pairs",
    "fairness_outcome": "Bias against random pruning",
    "output_bytes": "Bytes written",
    "seconds": "Seconds",
    "reload_check": "Reload check",
}


def _show(metrics: dict[str, Any], output_path: Path) -> None:
    for message in (*metrics.get("warnings", ()), *metrics.get("fairness", {}).get("warnings", ())):
        warn(message)
    rows = {label: metrics[key] for key, label in _ROWS.items() if metrics.get(key) is not None}
    if "layers_removed" in metrics:
        rows.pop("Layers pruned", None)  # they are removed, not narrowed
    show_table(f"Saved to {output_path}", rows)
