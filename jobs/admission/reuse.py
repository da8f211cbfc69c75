"""When two jobs are the same work: same model bytes, same spec, same code."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jobs.admission.estimating import JobFacts
from jobs.rows import Worker
from jobs.specs import (
    AnyRequest,
    HubModelRef,
    JobModelRef,
    LocalModelRef,
    Spec,
    UploadRef,
    model_references,
    spec_to_json,
)
from optipfair_engine.options.suites import entry_of


def reuse_key(request: AnyRequest, workers: Sequence[Worker], sources: Mapping[str, JobFacts]) -> str | None:
    """A SHA-256 that is equal for equal work, or None if that can't be said.

    It can't where the workers differ in the model's revision or in their code, and where the spec names
    a text file or a data set of the hub, whose content may have changed under its name.
    """
    return key_of(request.kind, request.spec, workers, sources)


def key_of(kind: str, spec: Spec, workers: Sequence[Worker], sources: Mapping[str, JobFacts]) -> str | None:
    """The same, of a kind and its spec; `workers` are those that may do the work, or the one that did."""
    versions = {worker.code_version for worker in workers}
    plain = spec_to_json(spec)
    models = [_revision(ref, workers, sources) for _, ref in model_references(spec)]
    if len(versions) != 1 or None in models or _names_a_file(plain):
        return None
    plans = sorted(f"{key}:{facts.job.attempt}" for key, facts in sources.items())
    work = {"kind": kind, "spec": plain, "models": models, "jobs": plans, "code": versions.pop()}
    return hashlib.sha256(json.dumps(work, sort_keys=True).encode()).hexdigest()


def _revision(ref: Any, workers: Sequence[Worker], sources: Mapping[str, JobFacts]) -> str | None:
    if isinstance(ref, HubModelRef):
        return f"{ref.id}@{ref.revision}"
    if isinstance(ref, JobModelRef):
        whole = f"{ref.job_id}/{sources[ref.job_id].job.attempt}"
        return whole if ref.step is None else f"{whole}/{ref.step}"
    if isinstance(ref, UploadRef):
        return f"upload {ref.id}"  # once complete its files never change
    if isinstance(ref, LocalModelRef):
        found = {model.revision for worker in workers for model in worker.models if model.name == ref.name}
        return found.pop() if len(found) == 1 else None
    return f"step {ref.name}"


def _needs_data(suites: Iterable[str]) -> bool:
    """Whether a suite by name is read from files, which may change under their names."""
    return any(entry_of(name).files for name in suites)


def _names_a_file(spec: Any) -> bool:
    """Whether any part of a spec names a calibration file, a data set or a suite."""
    if isinstance(spec, list):
        return any(_names_a_file(item) for item in spec)
    if not isinstance(spec, dict):
        return False
    if isinstance(spec.get("suite"), str) or _needs_data(spec.get("suites") or ()):
        return True
    named_text = spec.get("source") not in (None, "upload", "model") and "texts" in spec
    return named_text or any(_names_a_file(value) for value in spec.values())
