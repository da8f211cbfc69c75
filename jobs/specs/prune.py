"""What a prune job may ask for: the engine's options with references to models and texts.

Whatever the engine would refuse or leave aside is refused here, before anything is queued. The fields and the
rules are the engine's (`optipfair_engine.options`); what stands here is a job's own: references, the limits
of a shared service, and that exactly one size is given.
"""

from __future__ import annotations

from typing import Annotated, Any, get_args

from pydantic import Field, model_validator

from jobs.specs.references import (
    Device,
    JobId,
    LayerIndices,
    OfModel,
    PromptPairs,
    PruneCalibrationRef,
    StepRef,
    TextRef,
)
from optipfair_engine.options import prune as engine, rules
from optipfair_engine.options.base import Finite, Strict, again
from optipfair_engine.options.presets import stages_of
from optipfair_engine.options.words import Preset


class Healing(engine.Healing):
    """A short distillation after pruning."""

    max_seconds: Annotated[int, Field(ge=1, le=24 * 3600)] = again(engine.Healing, "max_seconds")


class Search(engine.Search):
    """A search for the widths of layers."""

    max_seconds: Annotated[int, Field(ge=1, le=24 * 3600)] = again(engine.Search, "max_seconds")


class Reconstruction(engine.Reconstruction):
    """A fit of each pruned MLP alone to what the dense one gives."""

    max_seconds: Annotated[int, Field(ge=1, le=24 * 3600)] = again(engine.Reconstruction, "max_seconds")


class Fairness(engine.Fairness):
    """Lets what a neuron says about an attribute weigh in the selection."""

    prompt_pairs: PromptPairs = again(engine.Fairness, "prompt_pairs")


class PlanRef(Strict):
    """The plan of an earlier prune job, to be applied again."""

    job_id: JobId


class PruneSpec(engine.Prune, OfModel):
    """A smaller checkpoint. Width and attention take exactly one size; depth takes a count or the layers."""

    expansion_rate: Annotated[Finite, Field(gt=0, le=10_000)] | None = again(engine.Prune, "expansion_rate")
    layer_indices: LayerIndices | None = again(engine.Prune, "layer_indices")
    healing: Healing | None = again(engine.Prune, "healing")
    search: Search | None = again(engine.Prune, "search")
    reconstruction: Reconstruction | None = again(engine.Prune, "reconstruction")
    fairness: Fairness | None = again(engine.Prune, "fairness")
    device: Device = again(engine.Prune, "device")

    calibration: PruneCalibrationRef | None = None
    """Text that activations are measured on; healing distils on it, too. Without any, a preset other than
    guide lets the model write some (source "model")."""
    evaluation: TextRef | None = None
    """Text that perplexity before and after is measured on."""
    plan: PlanRef | None = None
    """Applies the plan of an earlier prune job, at its size or another."""
    layers_from: StepRef | None = None
    """Removes the num_layers_to_remove layers that an earlier importance step found least important."""

    @model_validator(mode="before")
    @classmethod
    def _preset_spelled_out(cls, given: Any) -> Any:
        """Say which text and stages a preset adds: whatever looks at a spec then sees them."""
        presets = [name for name in get_args(Preset) if name != "guide"]  # what is given may have no hash
        if not isinstance(given, dict) or given.get("preset") not in presets or given.get("plan") is not None:
            return given
        kind, fair = str(given.get("pruning_type", "MLP_GLU")), given.get("fairness") is not None
        added = {"calibration": {"source": "model"}, **stages_of(given["preset"], kind, fair=fair)}
        return {**added, **{name: value for name, value in given.items() if value is not None}}

    @property
    def writes_text(self) -> bool:
        """Whether the model writes calibration text itself, which takes all of it."""
        text = self.calibration
        return text is not None and (text.source == "model" or text.mix_self is not None)

    def check(self) -> None:
        """Refuse what doesn't go together, with what is known of a job only: its size, texts and plan."""
        if self.layers_from is not None:
            self._check_layers_from()
        calibrated, planned = self.calibration is not None, self.plan is not None
        rules.check_exactly_one_size(self, planned=planned)
        rules.check_type(self)
        rules.check_layer_choice(self)
        rules.check_named_layers(self)
        if planned:
            rules.check_beside_plan(self, calibrated=calibrated)
        rules.check_processes(self, calibrated=calibrated, planned=planned)
        rules.check_needs(self, calibrated=calibrated, planned=planned)
        rules.check_reconstruction(self)
        rules.check_search(self)
        if not planned:
            rules.check_reconstruction_of_refit(self, calibrated=calibrated)
        if planned:
            return
        rules.check_ties_of_job(self)
        if self.fairness is not None:
            rules.check_fairness(self)
        if calibrated:
            rules.check_calibration_is_used(self)
        rules.check_statistics(self, calibrated=calibrated)

    def _check_layers_from(self) -> None:
        """Refuse what would choose layers in another way beside the importance of a step."""
        if self.pruning_type != "DEPTH" or self.num_layers_to_remove is None:
            raise ValueError('layers_from: is for pruning_type "DEPTH", with num_layers_to_remove beside it')
        others = ("preset", "layer_selection_method", "plan")
        chosen = [name for name in others if rules.is_chosen(self, name)]
        if chosen:
            raise ValueError(f"{', '.join(chosen)}: not with layers_from, which chooses the layers")
