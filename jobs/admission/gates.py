"""Gates and options that only some suites have an answer to: what a suite file holds, workers tell."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from jobs.admission.sources import parts_of
from jobs.errors import InvalidError
from jobs.rows import JsonObject, Worker
from jobs.specs import AnyRequest, BiasSpec, Spec
from jobs.specs.producing import CROWS_PAIRS_ONLY, PAIRS_ONLY, STEREOSET_ONLY, reporting

SuiteFacts = Mapping[str, JsonObject]
#: What each kind of suite doesn't give, and what it is called.
_FOREIGN = {
    "crows_pairs": (PAIRS_ONLY | STEREOSET_ONLY, "CrowS-Pairs"),
    "stereoset": (PAIRS_ONLY | CROWS_PAIRS_ONLY, "StereoSet"),
    "prompt_pairs": (CROWS_PAIRS_ONLY | STEREOSET_ONLY | {"items", "mcnemar_p"}, "prompt pairs"),
}


def suite_facts(workers: Iterable[Worker]) -> dict[str, JsonObject]:
    """What these workers know of each suite: `{"kind", "items"}` by name; only where they agree."""
    seen: dict[str, list[JsonObject]] = {}
    for worker in workers:
        for name, facts in worker.suites.items():
            seen.setdefault(name, []).append(facts)
    return {name: facts[0] for name, facts in seen.items() if all(item == facts[0] for item in facts)}


def check_gates(request: AnyRequest, suites: SuiteFacts) -> None:
    """Refuse a gate on what the named suite doesn't give (`metric_not_produced`)."""
    for number, gate in enumerate(request.gates):
        found = list(reporting(request.kind, request.spec, gate.metric))
        told = [_fault(own, getattr(spec, "suite", None), suites) for _, _, spec, own in found]
        reasons = [reason for reason in told if reason is not None]
        if reasons and len(reasons) == len(told):
            where = ("gates", number, "metric")
            raise InvalidError(reasons[0], code="metric_not_produced", location=where)


def check_suites(spec: Spec, suites: SuiteFacts) -> None:
    """Refuse beside a file of sentences what only prompt pairs have an answer to (`suite_unfit`)."""
    for where, part in parts_of(spec):
        if not isinstance(part, BiasSpec) or not isinstance(part.suite, str):
            continue
        kind = str(suites.get(part.suite, {}).get("kind"))
        controls = ["control_pairs"] if part.control_pairs is not None else []
        asked = [*controls, *part.asked_of_pairs]
        if asked and kind in ("crows_pairs", "stereoset"):
            message = (
                f"{' and '.join(asked)}: for prompt pairs only; the suite {part.suite!r} holds "
                f"{_FOREIGN[kind][1]}, whose sentences are scored, without activations"
            )
            raise InvalidError(message, code="suite_unfit", location=("spec", *where, asked[0]))


def _fault(metric: str, suite: object, suites: SuiteFacts) -> str | None:
    facts = suites.get(suite) if isinstance(suite, str) else None
    foreign, called = _FOREIGN.get(str((facts or {}).get("kind")), (frozenset[str](), ""))
    if metric not in foreign:
        return None
    return f"this job would not report {metric!r}: the suite {suite!r} holds {called}, which don't give it"
