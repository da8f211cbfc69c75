"""What a model's facts rule out: layers it doesn't have, texts longer than its positions, sizes out of reach.

Everything here would end in the engine's own refusal, minutes later and after the model was loaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from jobs.admission.estimating import model_facts
from jobs.errors import InvalidError
from jobs.rows import JsonObject
from jobs.specs import BiasSpec, EvaluateSpec, PruneSpec
from optipfair_engine.headers import (
    lacks_experts,
    out_of_reach,
    why_not_dynamic,
    why_speechless,
    width_type,
)
from optipfair_engine.options.calibration import WINDOW_LENGTH

Location = tuple[str | int, ...]
Facts = Sequence[JsonObject | None]


def check_limits(where: Location, part: Any, facts: Facts) -> None:
    """Refuse what one spec (at `where` in the body) asks of models with these facts; None: not known.

    The first facts are those of the spec's own model, the others its baseline's.
    """
    for known in facts:
        if known is not None:
            _check_windows(where, part, known)
    own = facts[0] if facts else None
    if own is None:
        return
    if isinstance(part, BiasSpec):
        _check_figure_layers(where, part, own)
    if isinstance(part, EvaluateSpec):
        _check_dynamic(where, part, own)
    if isinstance(part, PruneSpec):
        _check_layers(where, part, own)
        _check_writing(where, part, own)
        if part.plan is None:
            _check_type(where, part, own)
        _check_size(where, part, own)


def _check_windows(where: Location, part: Any, known: JsonObject) -> None:
    """Longer windows than the model has positions: an error of the model, or hours of a worker."""
    limit = known.get("max_positions")
    for at, length in _lengths(part):
        # the default was not asked for: models of few positions read it as they always did
        if limit is not None and length != WINDOW_LENGTH and length > limit:
            message = f"the model has {limit:,} positions, and a window of {length:,} tokens needs more"
            raise _refusal(f"{message}: give at most {limit}", "window_too_long", (*where, *at))


def _lengths(part: Any) -> Iterator[tuple[Location, int]]:
    """The length of every window that a spec asks for, with its place."""
    if getattr(part, "calibration", None) is not None:
        yield ("calibration", "max_length"), part.calibration.max_length
    for name in ("evaluation", "text"):
        text = getattr(part, name, None)
        length = getattr(text, "max_length", None)
        if length is not None:
            yield (name, "max_length"), length


def _check_layers(where: Location, part: PruneSpec, known: JsonObject) -> None:
    count = known.get("num_layers")
    if count is None:
        return
    beyond = [index for index in part.layer_indices or () if index >= count]
    if beyond:
        raise _no_layer(beyond[0], count, (*where, "layer_indices"))
    if (part.num_layers_to_remove or 0) >= count:
        message = f"the model has {count} layers, and at least one must stay"
        raise _refusal(message, "layers_out_of_range", (*where, "num_layers_to_remove"))


def _check_figure_layers(where: Location, part: BiasSpec, known: JsonObject) -> None:
    count = known.get("num_layers")
    if count is None or isinstance(part.layers, str):
        return
    beyond = [index for index in part.layers if index >= count]
    if beyond:
        raise _no_layer(beyond[0], count, (*where, "layers"))


def _check_writing(where: Location, part: PruneSpec, known: JsonObject) -> None:
    why = why_speechless(str(known.get("model_type"))) if part.writes_text else None
    if why is not None:
        raise _refusal(why, "calibration_unfit", (*where, "calibration"))


def _check_dynamic(where: Location, part: EvaluateSpec, known: JsonObject) -> None:
    why = None if part.dynamic is None else why_not_dynamic(str(known.get("model_type")))
    if why is not None:
        raise _refusal(why, "dynamic_unfit", (*where, "dynamic"))


def _check_type(where: Location, part: PruneSpec, known: JsonObject) -> None:
    model_type = str(known.get("model_type"))
    if part.pruning_type == "EXPERTS" and (lacking := lacks_experts(model_type)) is not None:
        raise _refusal(lacking, "pruning_type_unfit", (*where, "pruning_type"))
    fitting = width_type(model_type)
    if fitting is None or part.pruning_type not in ("MLP_GLU", "MLP") or part.pruning_type == fitting:
        return
    kind = "a gated (GLU)" if fitting == "MLP_GLU" else "a plain"
    message = f'models of the family "{model_type}" have {kind} MLP: give pruning_type "{fitting}"'
    raise _refusal(message, "pruning_type_unfit", (*where, "pruning_type"))


def _check_size(where: Location, part: PruneSpec, known: JsonObject) -> None:
    found = out_of_reach(model_facts(known), part.model_dump(mode="json"))
    if found is not None:
        raise _refusal(found[1], "target_unreachable", (*where, found[0]))


def _no_layer(index: int, count: int, where: Location) -> InvalidError:
    message = f"the model has {count} layers, 0 to {count - 1}, and no layer {index}"
    return _refusal(message, "layers_out_of_range", where)


def _refusal(message: str, code: str, where: Location) -> InvalidError:
    return InvalidError(message, code=code, location=("spec", *where))
