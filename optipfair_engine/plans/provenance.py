"""Where a plan comes from: what was asked for, what was chosen on the way, and what it was calibrated on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from optipfair_engine.calibration.facts import CalibrationFacts
from optipfair_engine.options import rules

if TYPE_CHECKING:
    from optipfair_engine.options.prune import PruneOptions
    from optipfair_engine.options.words import (
        AttentionUnit,
        Compensation,
        ExpertSelectionMethod,
        LayerSelectionMethod,
        NeuronSelectionMethod,
        PruningType,
        TieBreak,
    )

#: What divided the neurons among the layers. A plan that was made anew along its own order of removal says
#: "allocated" of unequal widths.
WidthRule: TypeAlias = Literal["uniform", "importance", "curves", "allocated", "searched"]


@dataclass(frozen=True)
class FairnessFacts:
    """How fairness-aware selection chose the neurons that go.

    Attributes:
        weight: how much bias weighed against utility.
        prompt_pairs: how many pairs of prompts there were in all.
        held_out_pairs: how many of them the choice did not see.
        score: the formula of a neuron's score, in words.
    """

    weight: float
    prompt_pairs: int
    held_out_pairs: int
    score: str


@dataclass(frozen=True)
class Provenance:
    """How a plan was made. A field that is ``None`` does not apply to the plan, and isn't written.

    Attributes:
        pruning_type: what is removed.
        neuron_selection_method: the score of neurons; ``None`` where fairness chose them.
        tie_break: which of equally scored neurons stay, where it isn't the lower index.
        data_driven: whether activations had a say in the choice of neurons.
        layer_indices: the only layers that were to be pruned, if they were named.
        pruning_percentage: the size that was asked for (as the four fields that follow).
        expansion_rate: intermediate over hidden size, in percent.
        expansion_divisor: the number of which widths are multiples.
        target_parameters: how many parameters the whole model may have.
        target_bytes: how many bytes its weights may take.
        allocation: what divided the neurons among the layers.
        allocation_compared: ``False`` where unequal widths were taken without comparing them with equal ones.
        allocation_held_out_losses: rule → mean loss on held-out text, where they were compared.
        search_candidates: how many divisions of the neurons a search has judged.
        search_divergences: KL(dense ‖ pruned) in nats a token of the best rule ("start") and of what a search
            found ("found"), on the text that it judged on.
        allocation_predicted_errors: rule → mean predicted error of the layers, where widths are equal and
            others could have been had.
        layer_selection_method: what chose the layers that go.
        attention_unit: whether whole KV groups go, or query heads of each.
        head_selection: what chose the heads that stay.
        expert_selection_method: the score of experts.
        compensation: whether weights were refitted.
        refitted_layers: the layers whose weights stand in for removed layers.
        ridges: layer → λ of its refit.
        reconstructed_layers: the layers whose MLP was then trained towards the dense one, and got better.
        reconstruction_errors: layer → its relative error on held-out tokens before that, and after it.
        curve_ridge: λ of selection and of the predicted errors.
        curve_ridge_scale: what that λ is a multiple of.
        calibration: what the plan was calibrated on.
        fairness: how fairness-aware selection chose.
        warnings: what whoever uses the plan must know.
        other: what a plan file of another version says beyond that, kept as it is.
    """

    pruning_type: PruningType | None = None
    neuron_selection_method: NeuronSelectionMethod | None = None
    tie_break: TieBreak | None = None
    data_driven: bool | None = None
    layer_indices: tuple[int, ...] | None = None
    pruning_percentage: float | None = None
    expansion_rate: float | None = None
    expansion_divisor: int | None = None
    target_parameters: int | None = None
    target_bytes: int | None = None
    allocation: WidthRule | None = None
    allocation_compared: bool | None = None
    allocation_held_out_losses: Mapping[WidthRule, float] | None = None
    search_candidates: int | None = None
    search_divergences: Mapping[str, float] | None = None
    allocation_predicted_errors: Mapping[WidthRule, float] | None = None
    layer_selection_method: LayerSelectionMethod | None = None
    attention_unit: AttentionUnit | None = None
    head_selection: str | None = None
    expert_selection_method: ExpertSelectionMethod | None = None
    compensation: Compensation | None = None
    refitted_layers: tuple[int, ...] | None = None
    ridges: Mapping[int, float] | None = None
    reconstructed_layers: tuple[int, ...] | None = None
    reconstruction_errors: Mapping[int, tuple[float, float]] | None = None
    curve_ridge: float | None = None
    curve_ridge_scale: str | None = None
    calibration: CalibrationFacts | None = None
    fairness: FairnessFacts | None = None
    warnings: tuple[str, ...] | None = None
    other: Mapping[str, object] = field(default_factory=dict)

    @classmethod
    def of(cls, options: PruneOptions, **found: Any) -> Provenance:
        """What options ask for, as far as their pruning type reads it, and what was ``found`` on the way."""
        words = {name: getattr(options, name) for name in rules.WORDS_OF_PLAN if rules.reads(options, name)}
        if words.get("tie_break") == "lower_index":
            del words["tie_break"]
        if options.pruning_type == "DEPTH":
            if options.layer_indices is not None:
                words["layer_selection_method"] = "custom"
            return cls(pruning_type="DEPTH", **(words | found))
        return cls(pruning_type=options.pruning_type, **(words | rules.asked_size(options) | found))

    def words(self) -> dict[str, Any]:
        """What chose, under the names of the options that ask for it; ``None`` where nothing is stated."""
        return {name: getattr(self, name) for name in rules.WORDS_OF_PLAN}

    def chosen_as(self, other: Provenance) -> Provenance:
        """The same, of neurons chosen as ``other`` says: by a score, or by fairness and no score."""
        return replace(self, neuron_selection_method=other.neuron_selection_method, fairness=other.fairness)

    def to_json(self) -> dict[str, Any]:
        """Everything that is stated, as plain JSON under the fields' names."""
        stated = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "other"}
        return {**self.other, **{name: _plain(value) for name, value in stated.items() if value is not None}}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Provenance:
        """Read what ``to_json`` gave.

        Raises:
            KeyError, TypeError, ValueError, AttributeError: a field is malformed.
        """
        known = {one.name for one in fields(cls)} - {"other"}
        stated = {name: value for name, value in data.items() if name in known and value is not None}
        read = {name: _READ[name](value) if name in _READ else value for name, value in stated.items()}
        return cls(**read, other={name: value for name, value in data.items() if name not in stated})


_READ: Mapping[str, Any] = {
    "layer_indices": tuple,
    "refitted_layers": tuple,
    "reconstructed_layers": tuple,
    "reconstruction_errors": lambda found: {
        int(layer): (float(a), float(b)) for layer, (a, b) in found.items()
    },
    "warnings": tuple,
    "ridges": lambda ridges: {int(layer): ridge for layer, ridge in ridges.items()},
    "calibration": CalibrationFacts.from_json,
    "fairness": lambda facts: FairnessFacts(**facts),
}


def _plain(value: object) -> object:
    if isinstance(value, CalibrationFacts):
        return value.to_json()
    if isinstance(value, FairnessFacts):
        return asdict(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return list(value) if isinstance(value, tuple) else value
