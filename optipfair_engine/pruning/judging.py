"""What fairness-aware pruning did on held-out templates, beside random pruning of the same size."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from optipfair_engine.bias.analysis import analyze_pairs
from optipfair_engine.bias.cause.patching import continuation_distances
from optipfair_engine.bias.prompts.suites import PairItem, templates_of, texts_of
from optipfair_engine.bias.statistics.metrics import FROM_FIRST_DIFFERENCE
from optipfair_engine.bias.statistics.profile import Profile
from optipfair_engine.bias.statistics.significance import FEW_CLUSTERS, Array, outcome, relative_change
from optipfair_engine.bias.statistics.summary import pair_values
from optipfair_engine.options.words import FairnessBy
from optipfair_engine.plans.apply import apply_plan
from optipfair_engine.progress import Reporter

if TYPE_CHECKING:
    from optipfair_engine.calibration import CalibrationSet
    from optipfair_engine.plans.plan import PruningPlan

#: Components whose size no width pruning changes, so that before and after can be compared.
COMPARED: Final = ("mlp_output", "attention_output")
#: Relative change that doesn't count.
MARGIN: Final = 0.02


def judge(
    model: Any,
    tokenizer: Any,
    held: Sequence[PairItem],
    plans: Iterable[tuple[str, PruningPlan]],
    count: int,
    calibration: CalibrationSet,
    by: FairnessBy,
    report: Reporter,
) -> dict[str, Any]:
    """Every plan's difference on the held-out pairs and loss on the held-out calibration samples.

    The outcome is by what the neurons were chosen by: how far activations are apart, or, by "effect", how far
    the next tokens' distributions are (``next_tokens``).
    """
    from optipfair_engine.calibration.statistics import held_out_windows
    from optipfair_engine.evaluation.perplexity import score_windows

    windows, pairs, templates = held_out_windows(calibration), texts_of(held), templates_of(held)
    values: dict[str, Array] = {}
    distances: dict[str, Array] = {}
    losses: dict[str, float | None] = {}
    for done, (name, plan) in enumerate(chain([("dense", None)], plans), 1):
        candidate = model if plan is None else apply_plan(model, plan)
        values[name] = compared_values(analyze_pairs(candidate, tokenizer, pairs, templates=templates))
        if by == "effect":
            distances[name] = continuation_distances(candidate, tokenizer, pairs)
        losses[name] = score_windows(candidate, windows).mean_loss if windows else None
        report("evaluate", done, count + 1, f"{name} on {len(held)} held-out pairs")
    return verdict(values, losses, templates, distances)


def compared_values(profile: Profile) -> Array:
    """Each pair's mean difference from the first difference on, of what keeps its size ``[pairs]``."""
    names, values = pair_values(profile, FROM_FIRST_DIFFERENCE)
    columns: Array = values[:, [names.index(name) for name in COMPARED if name in names]].mean(axis=1)
    return columns


def verdict(
    values: Mapping[str, Array],
    losses: Mapping[str, float | None],
    templates: Sequence[str],
    distances: Mapping[str, Array] | None = None,
) -> dict[str, Any]:
    """The report: name of a plan → values ``[pairs]`` of the held-out pairs; ``distances`` judge if given."""
    activations = _compared(values, templates)
    judging = _compared(distances, templates) if distances else activations
    change = activations["against_dense"]
    return {
        **activations,
        **({"next_tokens": judging} if distances else {}),
        "held_out_loss": dict(losses),
        "bias_change": change["value"] if change is not None else None,
        "outcome": judging["outcome"],
        "warnings": _warnings(judging["outcome"], len(set(templates))),
    }


def _compared(values: Mapping[str, Array], templates: Sequence[str]) -> dict[str, Any]:
    drawn = [name for name in values if name.startswith("random")]
    fair, random = values["fair"], np.mean([values[name] for name in drawn], axis=0)
    change = relative_change(random, fair, templates)
    against_dense = relative_change(values["dense"], fair, templates)
    word = outcome(change, MARGIN) if change is not None else "inconclusive"
    beaten = sum(float(fair.mean()) < float(values[name].mean()) for name in drawn)
    if word == "better" and beaten < len(drawn):
        word = "inconclusive"  # the interval is of templates: it knows nothing of other random draws
    return {
        "difference": {name: float(value.mean()) for name, value in values.items()},
        "against_dense": against_dense.as_dict() if against_dense is not None else None,
        "against_random": change.as_dict() if change is not None else None,
        "random_draws_beaten": beaten,
        "outcome": word,
    }


def _warnings(word: str, templates: int) -> list[str]:
    found = []
    if word != "better":
        found.append(
            "On held-out templates, fairness-aware pruning was not clearly better than random pruning of the "
            "same size."
        )
    if templates == 1:
        found.append(
            "One held-out template: nothing says how others would come out, so there is no interval."
        )
    elif templates < FEW_CLUSTERS:
        found.append(
            f"Only {templates} held-out templates: the intervals are wide, and only hold if no template is "
            "far from all others."
        )
    return found
