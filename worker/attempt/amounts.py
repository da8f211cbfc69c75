"""How much there is for a job to do, as far as headers and outer forms tell: models' sizes, suites' items."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from jobs.errors import JobsError
from jobs.rows import JsonObject
from optipfair_engine.headers import HeaderError, inspect_model_folder
from worker.inputs.suites import suite_facts
from worker.services import Services

Reference = Mapping[str, Any]


@dataclass(frozen=True)
class Amounts:
    """What is known of the models and suites that a spec names; of the others, nothing is said."""

    parameters: Mapping[str, int] = field(default_factory=dict)
    suites: Mapping[str, JsonObject] = field(default_factory=dict)

    @classmethod
    def of(cls, services: Services, spec: Mapping[str, Any]) -> Amounts:
        """Look at headers and outer forms; what can't be read is left to the engine to complain about."""
        models, suites = {}, {}
        for reference in _models_of(spec):
            size = _parameters(services, reference)
            if size:
                models[_key(reference)] = size
        for name in _suites_of(spec):
            facts = suite_facts(services.settings.suites_dir / name)
            if facts is not None:
                suites[name] = facts
        return cls(models, suites)

    def size_of(self, reference: Reference | None) -> int | None:
        """The parameters of a model; None if they are not known."""
        return None if reference is None else self.parameters.get(_key(reference))


def _key(reference: Reference) -> str:
    return json.dumps(reference, sort_keys=True)


def _specs(spec: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield spec
    yield from (step["spec"] for step in spec.get("steps", ()))


def _models_of(spec: Mapping[str, Any]) -> Iterator[Reference]:
    named = (part.get(name) for part in _specs(spec) for name in ("model", "baseline"))
    yield from (reference for reference in named if reference)


def _suites_of(spec: Mapping[str, Any]) -> Iterator[str]:
    yield from (part["suite"] for part in _specs(spec) if isinstance(part.get("suite"), str))


def _parameters(services: Services, reference: Reference) -> int | None:
    repository, source = services.repository, reference.get("source")
    try:
        if source == "local":
            return inspect_model_folder(services.settings.models_dir / str(reference["name"])).parameters
        if source == "upload":
            return (repository.get_upload(str(reference["id"])).facts or {}).get("parameters")
        if source == "job":
            before = f"{reference['step']}." if reference.get("step") else ""
            metrics = repository.get_metrics(str(reference["job_id"])) or {}
            return metrics.get(f"{before}pruned_parameters")
    except (HeaderError, JobsError, SQLAlchemyError, OSError, ValueError, KeyError):
        return None
    return None
