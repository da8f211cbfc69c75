"""``optipfair bias`` and ``optipfair compare``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from optipfair_engine.cli.generated import options_from
from optipfair_engine.cli.output import Overwrite, filled_folder
from optipfair_engine.cli.shared import (
    Json,
    ModelPath,
    OutputPath,
    Verbose,
    find_model,
    refuse_unread,
)
from optipfair_engine.cli.terminal import explained, progress, show_json, show_table, warn
from optipfair_engine.errors import InvalidOptionError
from optipfair_engine.options.bias import Bias
from optipfair_engine.options.suites import SUITES_FOLDER

if TYPE_CHECKING:
    from optipfair_engine.bias.prompts.suites import PairItem

_PROMPTS, _FIGURES = "What the model is asked", "Figures"

PairsFile = Annotated[
    Path | None,
    typer.Option(help="Prompt pairs: JSON, or one pair a line.", rich_help_panel=_PROMPTS),
]
Attributes = Annotated[
    str | None,
    typer.Option(
        help='Words to fill in, as "male,female"; every two are compared.', rich_help_panel=_PROMPTS
    ),
]
SuiteFile = Annotated[
    Path | None,
    typer.Option(help="CrowS-Pairs (CSV), StereoSet (JSON) or prompt pairs.", rich_help_panel=_PROMPTS),
]
SuiteNames = Annotated[
    str | None,
    typer.Option(
        help='Suites by name, as "crows_pairs,stereoset"; optipfair suites list shows them.',
        rich_help_panel=_PROMPTS,
    ),
]
SuitesFolder = Annotated[
    Path, typer.Option(help="Folder in which the named suites' files lie.", rich_help_panel=_PROMPTS)
]
ControlFile = Annotated[
    Path | None,
    typer.Option(help="Rewordings that change no attribute: the noise floor.", rich_help_panel=_PROMPTS),
]
#: What files and lists of words are read into, so that the commands spell it themselves.
_SPELLED = (
    "prompt_pairs",
    "attributes",
    "suite",
    "suites",
    "control_pairs",
    "visualization_types",
    "layers",
    "layer_types",
)
#: What is asked of one model only, or drawn of it.
_DRAWN = ("figure_format", "neuron_ranking")
_SAID = {
    "margin": {
        "min": 0,
        "help": "Change that doesn't count (relative, mean difference: 0.05; a suite's share: 0.02).",
    }
}


@explained
@options_from(Bias, without=_SPELLED, changed=_SAID)
def bias(
    context: typer.Context,
    model_path: ModelPath,
    output_path: OutputPath,
    prompt_pairs: PairsFile = None,
    attributes: Attributes = None,
    suite: SuiteFile = None,
    suites: SuiteNames = None,
    suites_folder: SuitesFolder = SUITES_FOLDER,
    control_pairs: ControlFile = None,
    visualization_types: Annotated[
        str | None,
        typer.Option(
            help="Figures of each pair, beside the one chart of all layers: mean_diff, heatmap, pca; "
            '"none" for no figure at all.',
            rich_help_panel=_FIGURES,
        ),
    ] = None,
    layers: Annotated[
        str, typer.Option(help='first_middle_last, all, or positions as "0,2,15".', rich_help_panel=_FIGURES)
    ] = "first_middle_last",
    layer_types: Annotated[
        str | None, typer.Option(help='Components, as "mlp_output,gate_proj".', rich_help_panel=_FIGURES)
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(help="Another model, which this one is compared with.")
    ] = None,
    overwrite: Overwrite = False,
    verbose: Verbose = True,
    as_json: Json = False,
    **chosen: Any,
) -> None:
    """Measure how differently a model treats prompts that differ in an attribute (default: built-in)."""
    refuse_unread(context, {"margin": (baseline, "--baseline")})
    options = {
        **chosen,
        "generation": _generation(context, chosen),
        **_prompt_options(prompt_pairs, attributes, suite, suites, control_pairs),
        "visualization_types": _kinds(visualization_types),
        "layers": _layers(layers),
        "layer_types": _words(layer_types) or None,
    }
    folders = output_path, suites_folder
    metrics = _run(model_path, baseline, folders, options, overwrite=overwrite, verbose=verbose)
    _show(f"Bias of {model_path}", metrics, output_path, as_json)


@explained
@options_from(Bias, without=(*_SPELLED, *_DRAWN), changed=_SAID)
def compare(
    context: typer.Context,
    before: Annotated[str, typer.Option(help="The model that was: folder, GGUF file or hub id.")],
    after: Annotated[str, typer.Option(help="The model that is: folder, GGUF file or hub id.")],
    output_path: OutputPath,
    prompt_pairs: PairsFile = None,
    attributes: Attributes = None,
    suite: SuiteFile = None,
    suites: SuiteNames = None,
    suites_folder: SuitesFolder = SUITES_FOLDER,
    control_pairs: ControlFile = None,
    overwrite: Overwrite = False,
    verbose: Verbose = True,
    as_json: Json = False,
    **chosen: Any,
) -> None:
    """Compare the bias of two models on the same prompts: better, worse, or inconclusive."""
    options = {
        **chosen,
        "generation": _generation(context, chosen),
        **_prompt_options(prompt_pairs, attributes, suite, suites, control_pairs),
        "visualization_types": [],
    }
    folders = output_path, suites_folder
    metrics = _run(after, before, folders, options, overwrite=overwrite, verbose=verbose)
    _show(f"{after} compared with {before}", metrics, output_path, as_json)


def _generation(context: typer.Context, chosen: dict[str, Any]) -> dict[str, Any] | None:
    """The options of continuations, if their length is given; the others alone are refused."""
    continued: dict[str, Any] = chosen["generation"]
    asked = continued.get("max_new_tokens")
    refuse_unread(
        context, {f"generation_{name}": (asked, "--generation-tokens") for name in ("samples", "seed")}
    )
    return continued if asked is not None else None


def _run(
    model: str,
    baseline: str | None,
    folders: tuple[Path, Path],
    options: dict[str, Any],
    *,
    overwrite: bool,
    verbose: bool,
) -> dict[str, object]:
    from optipfair_engine.workflow.bias import BiasOptions, bias_checkpoint

    chosen, (output, suites_folder) = BiasOptions(**options), folders
    source = find_model(model)
    other = find_model(baseline) if baseline is not None else None
    sources = (source,) if other is None else (source, other)
    with (
        filled_folder(output, "bias", overwrite=overwrite, sources=sources) as folder,
        progress(not verbose) as report,
    ):
        return bias_checkpoint(
            source,
            folder,
            chosen,
            baseline=other,
            model_name=_called(model),
            baseline_name=_called(baseline) if baseline is not None else None,
            suites_folder=suites_folder,
            report=report,
        )


def _called(model: str) -> str | None:
    """A model as its user named it: a hub id; None for a folder or file, which goes by its own name."""
    return None if Path(model).exists() else model


def _prompt_options(
    prompt_pairs: Path | None,
    attributes: str | None,
    suite: Path | None,
    suites: str | None,
    control_pairs: Path | None,
) -> dict[str, Any]:
    return {
        "prompt_pairs": _read_pairs(prompt_pairs),
        "attributes": _words(attributes) or None,
        "suite": suite,
        "suites": None if suites is None else _words(suites),
        "control_pairs": _read_pairs(control_pairs),
    }


def _read_pairs(path: Path | None) -> list[PairItem] | None:
    if path is None:
        return None
    from optipfair_engine.bias.prompts.suites import read_pairs

    return read_pairs(path)


def _kinds(text: str | None) -> list[str] | None:
    """Kinds of figures of single pairs; None: nothing said, so the chart alone."""
    return None if text is None else ([] if text == "none" else _words(text))


def _words(text: str | None) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()] if text else []


def _layers(text: str) -> str | list[int]:
    if text in ("first_middle_last", "all"):
        return text
    try:
        return [int(word) for word in _words(text)]
    except ValueError:
        raise InvalidOptionError(
            f"--layers must be first_middle_last, all or positions (e.g. '0,2,15'), got {text!r}"
        ) from None


def _show(title: str, metrics: dict[str, object], output: Path, as_json: bool) -> None:
    if as_json:
        show_json(metrics)
        return
    from optipfair_engine.workflow.bias import read_findings

    conclusion, warnings = read_findings(output)
    print(conclusion)
    show_table(title, {name: value for name, value in metrics.items() if name != "warnings"})
    for text in warnings:
        warn(text)
    print(f"Report: {output / 'report.html'}")
