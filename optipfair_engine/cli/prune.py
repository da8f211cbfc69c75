"""``optipfair prune``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from optipfair_engine.cli.generated import options_from
from optipfair_engine.cli.output import Overwrite, filled_folder
from optipfair_engine.cli.shared import (
    CALIBRATION,
    RUN,
    Json,
    ModelPath,
    OutputPath,
    Verbose,
    find_model,
    read_calibration,
    read_text_file,
    refuse_unread,
)
from optipfair_engine.cli.terminal import explained, progress, show_json, show_table, warn
from optipfair_engine.errors import InvalidOptionError
from optipfair_engine.options.calibration import Cut, EvaluationCut, OwnText
from optipfair_engine.options.presets import with_own_text
from optipfair_engine.options.prune import Prune, PruneOptions


@explained
@options_from(
    Prune,
    Cut,
    OwnText,
    EvaluationCut,
    without=("depth_pruning_percentage", "fairness_prompt_pairs"),
    changed={
        "pruning_percentage": {
            "help": "Per cent of neurons, heads, KV groups or (DEPTH) layers that go. Default: 10; "
            "DEPTH: none."
        },
        "layer_indices": {
            "help": 'Layers, as "2,5,8": those to remove (DEPTH), or the only ones to prune. Default: all.'
        },
        "verify": {
            "default": None,
            "help": "How the saved model is checked. Default: structure if it is pruned by its weights alone "
            "(then it is streamed from disk to disk), else logits.",
        },
        "max_length": {"min": 2},
    },
)
def prune(
    context: typer.Context,
    model_path: ModelPath,
    output_path: OutputPath,
    calibration_file: Annotated[
        Path | None,
        typer.Option(
            "--calibration",
            help='Text: .txt, or .jsonl with {"text": …} lines. Without any, a preset lets the model write.',
            rich_help_panel=CALIBRATION,
        ),
    ] = None,
    out_of_core: Annotated[
        bool,
        typer.Option(
            "--out-of-core/--in-memory",
            help="Calibrate layer by layer from disk, with little memory: short for --execution streamed.",
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
    fairness_pairs: Annotated[
        Path | None,
        typer.Option(
            help="Prompt pairs (as of optipfair bias): what reacts to their difference goes first. Needs "
            "--calibration.",
            rich_help_panel="What is pruned",
        ),
    ] = None,
    plan: Annotated[
        Path | None,
        typer.Option(
            help="Apply the plan of an earlier run (its folder), at its size or another.", rich_help_panel=RUN
        ),
    ] = None,
    overwrite: Overwrite = False,
    verbose: Verbose = True,
    as_json: Json = False,
    **chosen: Any,
) -> None:
    """Prune a model and save the result, with its plan, a model card, metrics and plots."""
    _refuse_unread(context, chosen, calibration_file, evaluation, fairness_pairs, planned=plan is not None)
    if out_of_core and chosen["execution"] == "memory":
        raise InvalidOptionError("--out-of-core is --execution streamed: leave one of them out")
    if out_of_core:
        chosen["execution"] = "streamed"
    apart = chosen["execution"] == "streamed" or work_dir is not None
    chosen["fairness"] = _fairness(fairness_pairs, chosen["fairness"], apart)
    metrics = _run(
        model_path,
        output_path,
        with_own_text(_options(chosen), texts=calibration_file is not None, planned=plan is not None),
        calibration_file,
        evaluation,
        plan,
        overwrite=overwrite,
        quiet=not verbose,
        check_more=chosen["verify"] is None,
        work=work_dir,
    )
    if as_json:
        show_json(metrics)
    else:
        _show(metrics, output_path)


def _refuse_unread(
    context: typer.Context,
    chosen: Mapping[str, Any],
    calibration: Path | None,
    evaluation: Path | None,
    fairness_pairs: Path | None,
    *,
    planned: bool,
) -> None:
    """Refuse options that were given without what makes them count."""
    searched = chosen["allocation"] == "searched" or None
    preset = chosen["preset"] != "guide" and not planned
    writes = chosen["calibration"] or chosen["mix_self"] or preset or None
    samples = (calibration or writes, "--calibration")
    refuse_unread(
        context,
        {
            "num_samples": samples,
            "batch_size": samples,
            "max_length": samples,
            "evaluation_max_length": (evaluation, "--evaluation"),
            "evaluation_num_windows": (evaluation, "--evaluation"),
            "seed": (
                chosen["healing"] or chosen["reconstruction"] or searched or fairness_pairs or writes,
                "--healing-seconds, --reconstruction-seconds, --allocation searched, --fairness-pairs or "
                "--calibration-source model",
            ),
            "fairness_weight": (fairness_pairs, "--fairness-pairs"),
            "fairness_by": (fairness_pairs, "--fairness-pairs"),
        },
    )


def _options(chosen: Mapping[str, Any]) -> PruneOptions:
    """The engine's options: with DEPTH, the percentage is one of layers."""
    said = dict(chosen, verify=chosen["verify"] or "structure")
    if said["pruning_type"] == "DEPTH":
        said["depth_pruning_percentage"] = said.pop("pruning_percentage")
    return PruneOptions(**said)


def _fairness(pairs: Path | None, asked: Mapping[str, Any], out_of_core: bool) -> dict[str, Any] | None:
    if pairs is None:
        return None
    if out_of_core:
        raise InvalidOptionError("--fairness-pairs runs the prompts through the whole model: not out of core")
    from optipfair_engine.bias.prompts.suites import read_pairs

    return {**asked, "prompt_pairs": read_pairs(pairs)}


def _run(
    model_path: str,
    output_path: Path,
    options: PruneOptions,
    calibration: Path | None,
    evaluation: Path | None,
    plan: Path | None,
    *,
    overwrite: bool,
    quiet: bool,
    check_more: bool,
    work: Path | None,
) -> dict[str, Any]:
    from optipfair_engine.workflow.prune.route import Case, choose_route

    source = find_model(model_path)
    if check_more and options.execution != "streamed" and work is None:
        calibrated = calibration is not None or options.writes_text
        case = Case.of(source, options, calibration=calibrated, evaluation=evaluation is not None)
        if choose_route(options, case).execution == "memory":
            options = options.changed(verify="logits")
    if plan is None:
        _say_before(source, options)
    texts = read_text_file(evaluation)
    with (
        filled_folder(output_path, "prune", overwrite=overwrite, sources=(source,)) as folder,
        progress(quiet) as report,
    ):
        from optipfair_engine.workflow import prune_checkpoint

        samples = read_calibration(
            calibration,
            source,
            num_samples=options.num_samples,
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
            work=work,
        )
    return metrics


def _say_before(source: Path, options: PruneOptions) -> None:
    """What is known of the result before anything has been computed."""
    from optipfair_engine.workflow.foreseen import facts_of, makes_layers_unequal

    if makes_layers_unequal(facts_of(source), options):
        warn(
            "only some layers are pruned, so that layers will have unequal sizes: the result needs "
            "optipfair_engine.load_pruned, or to be converted to GGUF; plain transformers refuses it"
        )


_ROWS = {
    "original_parameters": "Parameters before",
    "pruned_parameters": "Parameters after",
    "percentage_reduction": "Reduction (%)",
    "expansion_rate": "Expansion rate (%)",
    "pruned_layers": "Layers pruned",
    "layers_removed": "Layers removed",
    "final_layer_count": "Layers left",
    "final_expert_count": "Experts left in a layer",
    "perplexity_dense": "Perplexity before",
    "perplexity_pruned": "Perplexity after",
    "perplexity_static_same_size": "Perplexity, static MAW of this size",
    "perplexity_ratio": "Perplexity ratio",
    "evaluation_max_length": "Tokens in a window",
    "evaluation_windows": "Windows",
    "held_out_loss_uniform": "Held-out loss, equal widths",
    "held_out_loss_importance": "Held-out loss, widths by importance",
    "held_out_loss_curves": "Held-out loss, widths by error",
    "held_out_loss_searched": "Held-out loss, searched widths",
    "predicted_error_uniform": "Predicted error, equal widths",
    "predicted_error_allocated": "Predicted error, allocated widths",
    "reconstruction_layers": "Layers better by reconstruction",
    "reconstruction_error_before": "Held-out error of layers, refitted",
    "reconstruction_error_after": "Held-out error of layers, reconstructed",
    "bias_change": "Bias change, held-out pairs",
    "fairness_outcome": "Bias against random pruning",
    "output_bytes": "Bytes written",
    "seconds": "Seconds",
    "reload_check": "Reload check",
    "loads_with_transformers": "Loads with plain transformers",
}


def _show(metrics: dict[str, Any], output_path: Path) -> None:
    for warning in metrics["warnings"]:
        warn(warning["message"])
    rows = {label: metrics[key] for key, label in _ROWS.items() if metrics.get(key) is not None}
    rows["Loads with plain transformers"] = "yes" if metrics["loads_with_transformers"] else "no"
    if "layers_removed" in metrics:
        rows.pop("Layers pruned", None)  # they are removed, not narrowed
    show_table(f"Saved to {output_path}", rows)
