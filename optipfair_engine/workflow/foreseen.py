"""What a model's headers show to be impossible: found out before any weight is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optipfair_engine.errors import InvalidOptionError, UnsupportedModelError
from optipfair_engine.headers import (
    HeaderError,
    ModelFacts,
    inspect_model_folder,
    lacks_experts,
    out_of_reach,
    why_not_dynamic,
    why_speechless,
    width_type,
)
from optipfair_engine.options.calibration import WINDOW_LENGTH
from optipfair_engine.pruning.sizes import checked_layer_indices

if TYPE_CHECKING:
    from optipfair_engine.options.prune import PruneOptions

#: Families with two stacks of layers, of which the headers' facts count one.
_TWO_STACKS = frozenset({"t5", "mt5", "umt5"})


def facts_of(source: Path) -> ModelFacts | None:
    """What the headers say; None where they can't be read: loading the model says what is wrong."""
    try:
        return inspect_model_folder(source)
    except (HeaderError, OSError):
        return None


def refuse_long_windows(facts: ModelFacts | None, lengths: Mapping[str, int | None]) -> None:
    """Refuse windows that are longer than the positions that the model knows.

    Args:
        facts: of the model.
        lengths: option → tokens in a window, None where no text is read.

    Raises:
        InvalidOptionError: names the option and the longest window.
    """
    most = None if facts is None or facts.model_type in _TWO_STACKS else facts.max_positions
    for name, length in lengths.items():
        # the default was not asked for: models of few positions read it as they always did
        if most is not None and length not in (None, WINDOW_LENGTH) and length > most:
            raise InvalidOptionError(
                f"{name} {length} is longer than what the model can read, which has {most} positions: give "
                f"at most {most}"
            )


def refuse_speechless(facts: ModelFacts | None) -> None:
    """Refuse to let a model write calibration text that predicts no next token.

    Raises:
        UnsupportedModelError: the text names the family.
    """
    why = None if facts is None else why_speechless(facts.model_type)
    if why is not None:
        raise UnsupportedModelError(why)


def refuse_undynamic(facts: ModelFacts | None) -> None:
    """Refuse dynamic pruning of a model without a next token to predict, or without neurons to leave out.

    Raises:
        UnsupportedModelError: the text names the family.
    """
    why = None if facts is None else why_not_dynamic(facts.model_type)
    if why is not None:
        raise UnsupportedModelError(why)


def refuse_unprunable(facts: ModelFacts | None, options: PruneOptions, spec: Mapping[str, Any]) -> None:
    """Refuse a kind of pruning, layers and sizes that this model doesn't have.

    Args:
        facts: of the model.
        options: what is asked for.
        spec: the same under the names of a job's spec.

    Raises:
        UnsupportedModelError: neurons of gated MLPs are asked for where they are plain, or the reverse; or
            experts where there are none.
        InvalidOptionError: the option, and what would be right.
    """
    if facts is None:
        return
    if options.prunes_neurons:
        _check_width_type(facts.model_type, options.pruning_type)
    if options.pruning_type == "EXPERTS" and (lacking := lacks_experts(facts.model_type)) is not None:
        raise UnsupportedModelError(lacking)
    if facts.num_layers is not None and options.layer_indices is not None:
        checked_layer_indices(options.layer_indices, facts.num_layers)
    if options.num_layers_to_remove is not None and facts.num_layers is not None:
        _check_count(options.num_layers_to_remove, facts)
    wrong = out_of_reach(facts, spec)
    if wrong is not None:
        raise InvalidOptionError(f"{wrong[0]}: {wrong[1]}")


def refuse_missing_layers(facts: ModelFacts | None, layers: str | Sequence[int]) -> None:
    """Refuse figures of layers that the model doesn't have.

    Raises:
        InvalidOptionError: names them, and says which there are.
    """
    if facts is None or facts.num_layers is None or isinstance(layers, str):
        return
    count = facts.num_layers
    missing = [layer for layer in layers if layer >= count]
    if missing and facts.model_type not in _TWO_STACKS:
        raise InvalidOptionError(
            f"layers: figures of {', '.join(map(str, missing))} were asked for; the model has {count} layers "
            f"(0 to {count - 1})"
        )


def makes_layers_unequal(facts: ModelFacts | None, options: PruneOptions) -> bool:
    """Whether it is certain that layers will have unequal sizes, so that plain transformers refuses them."""
    if options.layer_indices is None or options.pruning_type == "DEPTH" or facts is None:
        return False
    return facts.num_layers is not None and len(set(options.layer_indices)) < facts.num_layers


def _check_width_type(model_type: str, asked: str) -> None:
    fitting = width_type(model_type)
    if fitting is not None and fitting != asked:
        kind = "plain" if fitting == "MLP" else "gated"
        glu = "Model is not compatible with GLU pruning. " if asked == "MLP_GLU" else ""
        raise UnsupportedModelError(
            f'{glu}The family {model_type!r} has {kind} MLPs; use pruning_type="{fitting}"'
        )


def _check_count(count: int, facts: ModelFacts) -> None:
    if facts.num_layers is not None and count >= facts.num_layers:
        if facts.model_type in _TWO_STACKS:
            return
        raise InvalidOptionError(
            f"num_layers_to_remove {count}: the model has {facts.num_layers} layers; at least one must stay"
        )
