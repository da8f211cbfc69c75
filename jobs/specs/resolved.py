"""A spec as it is carried out: what a preset stands for written out."""

from __future__ import annotations

from typing import Any

from jobs.specs.kinds import PipelineSpec, Spec, spec_to_json
from jobs.specs.prune import PruneSpec
from optipfair_engine.options.presets import resolve_preset
from optipfair_engine.options.prune import PruneOptions


def resolved(spec: Spec) -> dict[str, Any]:
    """The spec as plain JSON with every default, and with what its preset chooses where the spec is silent.

    Of a pipeline, every step's. The name of the preset stays.
    """
    if isinstance(spec, PipelineSpec):
        steps = [{**spec_to_json(step), "spec": resolved(step.spec)} for step in spec.steps]
        return {**spec_to_json(spec), "steps": steps}
    plain = spec_to_json(spec)
    if not isinstance(spec, PruneSpec) or spec.plan is not None:
        return plain  # a plan has settled what else would be chosen here
    names = [
        name for name in PruneOptions.model_fields if name in PruneSpec.model_fields and name != "calibration"
    ]
    options = PruneOptions(**{name: getattr(spec, name) for name in names})
    chosen = resolve_preset(options, calibrated=spec.calibration is not None)
    changes = {
        name: getattr(chosen, name) for name in names if getattr(chosen, name) != getattr(options, name)
    }
    return {**plain, **changes}
