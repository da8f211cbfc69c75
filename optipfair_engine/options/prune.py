"""What is pruned, checked: the fields of ``options.fields`` with the rules of ``options.rules``."""

from __future__ import annotations

from typing import Self

from pydantic import model_validator

from optipfair_engine.options import rules
from optipfair_engine.options.base import EngineOptions, again
from optipfair_engine.options.calibration import Cut, EvaluationCut, OwnText
from optipfair_engine.options.fields import (
    DEFAULT_PERCENTAGE,
    Fairness,
    Healing,
    PruneFields,
    Reconstruction,
    Search,
)

__all__ = ["DEFAULT_PERCENTAGE", "Fairness", "Healing", "Prune", "PruneOptions", "Reconstruction", "Search"]


class Prune(PruneFields):
    """What is pruned, and how; jobs, the command and the calls share it, with what goes together."""

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        self.check()
        return self

    def check(self) -> None:
        """Refuse what doesn't go together, whatever else is given beside the options.

        Raises:
            ContradictionError: names the options, and says what would be right.
        """
        rules.check_type(self)
        rules.check_layer_choice(self)
        rules.check_ties(self)
        rules.check_reconstruction(self)
        rules.check_search(self)


class PruneOptions(EngineOptions, Cut, OwnText, EvaluationCut, Prune):
    """How to prune a checkpoint, with the guide's defaults; wrong options are the engine's errors.

    At most one size (``rules.SIZES``) may be given; none means the guide's 10 %. ``max_length``,
    ``batch_size`` and ``num_samples`` say how calibration texts are cut, ``evaluation_…`` how the text of
    perplexity is. Without ``allocation`` widths are uniform. ``calibration={"source": "model"}`` and
    ``mix_self`` let the model write calibration text itself.
    """

    device: str = again(Prune, "device", default="cpu")

    @property
    def writes_text(self) -> bool:
        """Whether the model writes calibration text itself."""
        return self.calibration is not None or self.mix_self is not None

    def check(self) -> None:
        """Refuse more than one size, and what doesn't go together anyway."""
        rules.check_one_size(self)
        super().check()
