"""What a user may ask for: a kind of job with its spec, and what holds for every kind (labels, gates …)."""

from __future__ import annotations

from jobs.specs.kinds import (
    KINDS,
    SPECS,
    AnalyzeSpec,
    BiasSpec,
    EvaluateSpec,
    ImportanceSpec,
    PipelineSpec,
    Spec,
    model_references,
    parse_spec,
    spec_to_json,
    upload_references,
)
from jobs.specs.prune import PruneSpec
from jobs.specs.references import (
    CalibrationRef,
    HubModelRef,
    JobModelRef,
    LocalModelRef,
    ModelRef,
    StepModelRef,
    TextRef,
    UploadRef,
)
from jobs.specs.requests import AnyRequest, Gate, JobRequest, parse_request, prepare

__all__ = [
    "KINDS",
    "SPECS",
    "AnalyzeSpec",
    "AnyRequest",
    "BiasSpec",
    "CalibrationRef",
    "EvaluateSpec",
    "Gate",
    "HubModelRef",
    "ImportanceSpec",
    "JobModelRef",
    "JobRequest",
    "LocalModelRef",
    "ModelRef",
    "PipelineSpec",
    "PruneSpec",
    "Spec",
    "StepModelRef",
    "TextRef",
    "UploadRef",
    "model_references",
    "parse_request",
    "parse_spec",
    "prepare",
    "spec_to_json",
    "upload_references",
]
