"""The named presets: ways of pruning written out as options, with what each measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from optipfair_engine.options.calibration import ModelItself
from optipfair_engine.options.errors import engines_errors
from optipfair_engine.options.rules import check_own_text, is_chosen

if TYPE_CHECKING:
    from optipfair_engine.options.prune import PruneOptions
    from optipfair_engine.options.words import Preset

_LAYERS: Final = {"compensation": "least_squares", "layer_selection_method": "importance"}
_HEADS: Final = {"compensation": "least_squares", "attention_unit": "query_head"}
_EXPERTS: Final = {"expert_selection_method": "REAP"}
_HEALING: Final = {"max_seconds": 480}


@dataclass(frozen=True)
class PresetFacts:
    """What a preset is.

    Attributes:
        name: as ``preset`` of a prune says it.
        version: goes up whenever the same name gives other results.
        summary: what it does, in a sentence.
        neurons: fields that it sets for pruning types MLP_GLU and MLP, with calibration.
        heads: the same for ATTENTION.
        layers: the same for DEPTH.
        experts: the same for EXPERTS.
        measured: what the tables of ``docs/pruning.md`` say of it, or that nothing was measured.
    """

    name: Preset
    version: int
    summary: str
    neurons: Mapping[str, Any]
    heads: Mapping[str, Any]
    layers: Mapping[str, Any]
    experts: Mapping[str, Any]
    measured: str

    def for_type(self, pruning_type: str) -> Mapping[str, Any]:
        """The fields that it sets for a pruning type."""
        others = {"ATTENTION": self.heads, "DEPTH": self.layers, "EXPERTS": self.experts}
        return others.get(pruning_type, self.neurons)


PRESETS: Final = (
    PresetFacts(
        "guide",
        1,
        "Nothing but what the other options say: their defaults choose by weights alone.",
        {},
        {},
        {},
        {},
        "SmolLM2-135M, 30 % of the neurons by static MAW: 29 times the dense perplexity.",
    ),
    PresetFacts(
        "recommended",
        2,
        "Calibrated: OBS chooses neurons and least squares refits what stays, in equal widths, which plain "
        "transformers loads; allocated widths differ by layer, where that is better on held-out text.",
        {"compensation": "least_squares", "neuron_selection_method": "OBS"},
        _HEADS,
        _LAYERS,
        _EXPERTS,
        "SmolLM2-135M, perplexity on WikiText-2 (dense 24.88): with allocated widths 26.14, 28.13, 30.69 and "
        "34.06 without 10, 20, 30 and 40 % of the neurons; 28.77 without a third of the query heads; 28.24, "
        "31.14 and 34.09 without 2, 4 and 6 of 30 layers.",
    ),
    PresetFacts(
        "fast",
        1,
        "Calibrated: activations score the neurons (data-driven MAW) and least squares refits what stays, in "
        "equal widths, without the ordering of neurons that takes OBS most of its time. 32 samples of "
        "calibration text instead of 128 shorten the forward passes, too. Heads and layers as with "
        "recommended.",
        {"compensation": "least_squares"},
        _HEADS,
        _LAYERS,
        _EXPERTS,
        "Neurons: not measured. Heads and layers: as recommended.",
    ),
    PresetFacts(
        "best",
        1,
        "Calibrated, and given a quarter of an hour: OBS and refit as recommended, widths of layers that are "
        "searched for (unequal: load_pruned or GGUF), then healed by distillation from the original, which "
        "takes the whole model in memory. Without reconstruction: healing gains more in the same time.",
        {
            "compensation": "least_squares",
            "neuron_selection_method": "OBS",
            "allocation": "searched",
            "healing": _HEALING,
        },
        {**_HEADS, "healing": _HEALING},
        {**_LAYERS, "healing": _HEALING},
        {**_EXPERTS, "healing": _HEALING},
        "Not measured as a whole. SmolLM2-135M, 30 % of the neurons in allocated widths: 30.69, healed for "
        "600 s of processor time 27.46.",
    ),
)
#: What a preset adds beside the choice of what goes: it decides where and how long a prune runs.
_STAGES: Final = ("allocation", "healing")


def with_own_text(options: PruneOptions, *, texts: bool, planned: bool = False) -> PruneOptions:
    """Options that say which text and stages a preset adds: the model's own text, if there is no other.

    Args:
        options: of a prune.
        texts: whether there is calibration text.
        planned: whether an earlier plan has settled everything.

    Raises:
        InvalidOptionError: text beside a model that writes all of it, or ``mix_self`` beside none.
    """
    with engines_errors():
        check_own_text(options, texts=texts)
    if options.preset == "guide" or planned:
        return options
    stages = stages_of(options.preset, options.pruning_type, fair=options.fairness is not None)
    options = options.changed(
        **{name: value for name, value in stages.items() if getattr(options, name) is None}
    )
    if texts or options.calibration is not None:
        return options
    return options.changed(calibration=ModelItself(source="model"))


def stages_of(preset: str, pruning_type: str, *, fair: bool) -> dict[str, Any]:
    """The fields by which a preset adds stages to a prune, so that they can be seen before it starts.

    ``fair``: whether fairness chooses the neurons, for which no widths are searched.
    """
    facts = next(facts for facts in PRESETS if facts.name == preset)
    asked = facts.for_type(pruning_type)
    return {name: asked[name] for name in _STAGES if name in asked and not (fair and name == "allocation")}


def resolve_preset(options: PruneOptions, *, calibrated: bool) -> PruneOptions:
    """Options with the preset written out; what was chosen away from the defaults stays as it is.

    Widths are equal, so that plain transformers loads the result, unless ``allocation`` says otherwise.
    Without calibration no preset changes anything; :func:`with_own_text` sees to it that there is some.
    """
    if options.preset == "guide" or not calibrated:
        return options
    preset = next(facts for facts in PRESETS if facts.name == options.preset)
    asked = preset.for_type(options.pruning_type)
    settled = _settled(options)
    return options.changed(
        **{
            name: value
            for name, value in asked.items()
            if name not in settled and not is_chosen(options, name)
        }
    )


def _settled(options: PruneOptions) -> set[str]:
    """Fields that others leave no choice in."""
    settled = set[str]()
    if options.fairness is not None:
        # fairness is itself the score of neurons, and no widths are searched for it
        settled |= {"neuron_selection_method", "allocation"}
    if options.layer_indices is not None:
        settled.add("layer_selection_method")
    return settled
