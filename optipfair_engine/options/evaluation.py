"""The options of an evaluation that jobs, the command and calls share, each declared once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final

from pydantic import Field

from optipfair_engine.options.base import About, EngineOptions, Finite, Strict
from optipfair_engine.options.errors import ContradictionError

#: A shorter prompt says too little of its neurons to choose among them.
LEAST_PROMPT_TOKENS: Final = 16


class Dynamic(Strict):
    """Dynamic pruning: each prompt chooses the neurons that its continuation is computed with."""

    keep_percentage: Annotated[Finite, Field(gt=0, lt=100), About(flag="--dynamic-keep")]
    """Measures dynamic pruning: per cent of each layer's neurons that stay behind a prompt, which chooses
    them (GRIFFIN)."""


class Evaluation(Strict):
    """What is evaluated beside the model as it is."""

    dynamic: Annotated[Dynamic | None, About()] = None
    """Measures dynamic pruning (GRIFFIN): each prompt chooses the neurons that its continuation is computed
    with."""


class EvaluationOptions(EngineOptions, Evaluation):
    """The same, where the engine's callers say it; wrong options are the engine's errors."""


def dynamic_of(given: Dynamic | Mapping[str, Any] | None) -> Dynamic | None:
    """What is asked of dynamic pruning, checked.

    Raises:
        InvalidOptionError: a percentage out of range.
        TypeError: a name that is no option.
    """
    plain: Any = given
    return EvaluationOptions(dynamic=plain).dynamic


def check_dynamic(
    dynamic: Dynamic | None, *, window: int | None = None, new_tokens: int | None = None
) -> None:
    """Refuse dynamic pruning where no token is computed with the neurons that a prompt chose.

    Args:
        dynamic: what is asked for.
        window: tokens in a window of the text; None without a text.
        new_tokens: how many are generated for each prompt; None if none are.

    Raises:
        ContradictionError: says what would be right.
    """
    if dynamic is None:
        return
    if window is not None and window < 2 * LEAST_PROMPT_TOKENS:
        raise ContradictionError(
            f"dynamic: half of each window of the text is read as a prompt, and a prompt takes at least "
            f"{LEAST_PROMPT_TOKENS} tokens: give a max_length of at least {2 * LEAST_PROMPT_TOKENS}"
        )
    if new_tokens is not None and new_tokens < 2:
        raise ContradictionError(
            "dynamic: the first new token comes from the prompt, which is read with all neurons: give a "
            "max_new_tokens of at least 2"
        )
