"""How a prune will be carried out by a worker with so much memory: the engine's decision, by facts alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jobs.specs.prune import PruneSpec
from optipfair_engine.headers import Estimate, ModelFacts, estimate_prune, estimate_streamed
from optipfair_engine.workflow.prune.route import Case, route_or_problem


@dataclass(frozen=True)
class Execution:
    """How a prune is carried out and why, with what it then needs; `problem` if it can't be."""

    execution: str | None
    reason: str | None
    estimate: Estimate
    layerwise: bool = False
    problem: str | None = None


def execution_of(
    spec: PruneSpec, plain: Mapping[str, Any], facts: ModelFacts, memory_bytes: int | None
) -> Execution:
    """What the engine would decide; `plain` is the spec as JSON, `memory_bytes` None for no limit."""
    case = Case.of_spec(facts, plain, memory_bytes)
    route = route_or_problem(spec, case)
    if isinstance(route, str):
        return Execution(None, None, estimate_prune(facts, plain), problem=route)
    streamed = route.execution == "streamed"
    estimate = (estimate_streamed if streamed else estimate_prune)(facts, plain)
    return Execution(route.execution, route.reason, estimate, route.layerwise)
