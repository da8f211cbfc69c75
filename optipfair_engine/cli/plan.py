"""``optipfair plan``: what a plan predicts for every layer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from optipfair_engine.cli.output import Overwrite, refuse_existing_file
from optipfair_engine.cli.shared import Json
from optipfair_engine.cli.terminal import explained, show_json, show_table
from optipfair_engine.errors import InvalidOptionError


@explained
def plan(
    plan_path: Annotated[Path, typer.Argument(help="plan.json, or the folder of a pruned model.")],
    percentages: Annotated[
        str, typer.Option(help="Percentages of neurons to show errors for.")
    ] = "10,20,30,40,50",
    output_path: Annotated[Path | None, typer.Option(help="A PNG file of the curves.")] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Show a plan: what stays of each layer, and the error that other widths would cost.

    The error is that of the layer's output, relative and squared, after a least-squares refit. Another ratio
    without calibrating again: optipfair prune --plan FOLDER --pruning-percentage 40 …
    """
    from optipfair_engine.plans.plan import PruningPlan
    from optipfair_engine.pruning.curves import error_table

    if output_path is not None:
        refuse_existing_file(output_path, overwrite=overwrite)
    loaded = PruningPlan.load(plan_path)
    shown = _percentages(percentages)
    table = error_table(loaded, shown)
    if output_path is not None:
        from optipfair_engine.figures import draw_curves, save

        save(draw_curves(loaded.curves or {}, loaded.kept_neurons), output_path)
    if as_json:
        show_json(
            {
                "method": loaded.provenance.to_json(),
                "percentages": list(shown),
                "relative_errors": {str(layer): list(errors) for layer, errors in table.items()},
                "kept_neurons": {str(layer): len(kept) for layer, kept in loaded.kept_neurons.items()},
            }
        )
        return
    rows = {
        str(layer): (
            len(loaded.kept_neurons.get(layer, range(len((loaded.curves or {})[layer]) - 1))),
            *(f"{error:.4f}" for error in errors),
        )
        for layer, errors in table.items()
    }
    headers = ("layer", "kept", *(f"−{p:g} %" for p in shown))
    show_table("Predicted relative error of each layer's output", rows, headers=headers)


def _percentages(text: str) -> tuple[float, ...]:
    try:
        found = tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise InvalidOptionError(f"percentages must be numbers, as 10,20,30; got {text!r}") from error
    if not found or not all(0 <= p < 100 for p in found):
        raise InvalidOptionError(f"percentages must be at least 0 and below 100; got {text!r}")
    return found
