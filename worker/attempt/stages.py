"""Which stages a job will pass, and what each tends to cost on this worker.

A stage may come more than once (perplexity before and after): each time is a stage of its own here. Costs are
seconds; only their proportions matter, since a job's own pace scales them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jobs.admission.workload import bias_work
from jobs.specs import BiasSpec
from optipfair_engine.options.suites import pair_suites
from worker.log import logger

#: In the work folder: what stages have cost here.
COSTS_FILE = "stage_costs.json"
#: How much the newest job counts in a cost that is known already.
_WEIGHT_OF_NEWEST = 0.5
#: A stage that took no time at all is still one that was passed.
_LEAST_SECONDS = 0.05
_FIGURE_SECONDS = 0.8
_DEFAULT_LENGTH, _CHARACTERS_PER_TOKEN = 512, 4.0
_DEFAULT_COUNTS = {"num_samples": 128, "num_windows": 40}
#: Of a small model and the default amount of text, on two cores, until this worker knows better.
_FIRST_GUESSES = {
    "load": 3.0,
    "generate": 150.0,
    "calibrate": 60.0,
    "importance": 30.0,
    "select": 40.0,
    "evaluate": 11.0,
    "prune": 3.0,
    "search": 300.0,
    "reconstruct": 120.0,
    "heal": 60.0,
    "bias": 20.0,
    "estimate": 10.0,
    "cause": 90.0,
    "plot": 1.5,
    "save": 12.0,
}
#: Loops over layers, but no passes over text, cost little where nothing is calibrated.
_STATIC_GUESSES = {"select": 1.5}


@dataclass(frozen=True)
class Stage:
    """One time that a job passes a stage: its name in reports, and the key under which its cost is kept."""

    name: str
    key: str
    guess: float
    learns: bool = True
    scales: bool = True


@dataclass
class StageCosts:
    """What stages have cost on this worker, kept in its work folder; a file that can't be read is ignored."""

    file: Path | None = None
    _known: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, work_dir: Path) -> StageCosts:
        """The costs as an earlier job left them."""
        file = work_dir / COSTS_FILE
        try:
            stored = json.loads(file.read_text())
            return cls(file, {str(key): float(value) for key, value in stored.items()})
        except (OSError, ValueError, TypeError, AttributeError):
            return cls(file)

    def cost(self, stage: Stage) -> float:
        """Seconds that a stage is expected to take."""
        return stage.guess * (self._known.get(stage.key, 1.0) if stage.learns else 1.0)

    def learn(self, spent: Mapping[Stage, float]) -> None:
        """Take over what the stages of a job that has succeeded took, as multiples of their guesses.

        Multiples, because a guess knows how much text there is, and the next job may have more.
        """
        for stage, seconds in spent.items():
            if stage.learns:
                newest = max(seconds, _LEAST_SECONDS) / stage.guess
                before = self._known.get(stage.key, newest)
                self._known[stage.key] = before + _WEIGHT_OF_NEWEST * (newest - before)
        if self.file is None:
            return
        try:
            temporary = self.file.with_suffix(f".{os.getpid()}.tmp")  # workers may share a folder
            temporary.write_text(json.dumps(self._known))
            temporary.replace(self.file)
        except OSError:  # guesses are good enough without it
            logger.warning("stage_costs.not_written", exc_info=True)


def stages_of(kind: str, spec: Mapping[str, Any]) -> list[Stage]:
    """The stages that a job passes, in order; a pipeline's are named `step:stage`."""
    if kind == "pipeline":
        steps = [(f"{step['name']}:", step["kind"], step["spec"]) for step in spec["steps"]]
    else:
        steps = [("", kind, spec)]
    return [stage for before, of, part in steps for stage in _stages(before, of, part)]


def _stages(before: str, kind: str, spec: Mapping[str, Any]) -> Iterator[Stage]:
    variant = f"{kind}+calibration" if kind == "prune" and spec.get("calibration") else kind
    guesses = _FIRST_GUESSES if variant != "prune" else {**_FIRST_GUESSES, **_STATIC_GUESSES}
    seen: dict[str, int] = {}
    for name in _names(kind, spec):
        seen[name] = seen.get(name, 0) + 1
        known = _known_cost(name, kind, spec)
        guess = guesses[name] * _amount(name, spec) if known is None else known
        scales, key = name not in ("plot", "heal", "reconstruct", "search"), f"{variant}/{name}/{seen[name]}"
        yield Stage(before + name, key, guess, learns=known is None, scales=scales)


def _amount(name: str, spec: Mapping[str, Any]) -> float:
    """How much text a stage reads, as a multiple of the default."""
    if name in ("generate", "calibrate", "importance") and spec.get("calibration"):
        text, count = spec["calibration"], "num_samples"
    elif name == "evaluate":
        text, count = spec.get("evaluation") or spec.get("text") or {}, "num_windows"
    else:
        return 1.0
    whole = _DEFAULT_COUNTS[count]
    # a text gives some windows of its own: of a few short ones there are fewer than may be read
    windows = text.get(count) or whole
    if text.get("texts") is not None:
        tokens = sum(map(len, text["texts"])) / _CHARACTERS_PER_TOKEN
        windows = min(windows, max(1.0, tokens / _DEFAULT_LENGTH))
    return (
        float(windows)
        / whole
        * (text.get("max_length") or spec.get("max_length") or _DEFAULT_LENGTH)
        / _DEFAULT_LENGTH
    )


def _known_cost(name: str, kind: str, spec: Mapping[str, Any]) -> float | None:
    """What the spec itself tells of a stage's cost, if it does."""
    limited = {"heal": "healing", "reconstruct": "reconstruction", "search": "search"}
    if name in limited and spec.get(limited[name]):
        return float(spec[limited[name]]["max_seconds"])
    if kind == "bias" and name == "plot" and spec.get("visualization_types"):
        # how many layers the model has isn't known here: "all" counts as two dozen
        return bias_work(BiasSpec.model_validate(spec), {}, 24).figures * _FIGURE_SECONDS
    return None


def _names(kind: str, spec: Mapping[str, Any]) -> Sequence[str]:
    if kind == "prune":
        return list(_of_prune(spec))
    if kind == "bias":
        return _of_bias(spec)
    middle = {"analyze": [], "importance": ["importance"], "evaluate": _of_evaluate(spec)}
    loads = ["load", "load"] if spec.get("baseline") else ["load"]
    return [*loads, *middle[kind], "plot"]


def _of_prune(spec: Mapping[str, Any]) -> Iterator[str]:
    calibrated, measured = bool(spec.get("calibration")), bool(spec.get("evaluation"))
    yield "load"
    text = spec.get("calibration") or {}
    if text.get("source") == "model" or text.get("mix_self"):
        yield "generate"
    if calibrated and (spec.get("layer_selection_method") == "importance" or _by_importance(spec)):
        yield "importance"
    elif calibrated:
        yield "calibrate"
    if not spec.get("plan"):
        yield "select"
    if spec.get("allocation") == "searched":
        yield "search"
    if spec.get("reconstruction"):
        yield "reconstruct"
    if measured:
        yield "evaluate"
        if calibrated and spec.get("pruning_type") != "EXPERTS":
            yield "evaluate"  # the static choice of the same size
    yield "prune"
    if spec.get("healing"):
        if measured:
            yield "evaluate"
        yield "heal"
    if measured:
        yield "evaluate"
    yield from ("plot", "save")


def _by_importance(spec: Mapping[str, Any]) -> bool:
    """Whether the preset chooses layers by their importance."""
    preset = spec.get("preset", "guide") != "guide" and spec.get("pruning_type") == "DEPTH"
    return preset and spec.get("layer_indices") is None and spec.get("layer_selection_method") == "last"


def _of_bias(spec: Mapping[str, Any]) -> list[str]:
    prompts = any(spec.get(name) is not None for name in ("prompt_pairs", "template", "suite"))
    controls = bool(spec.get("control_pairs")) or not prompts
    once = ["load", "bias", "bias"] if controls else ["load", "bias"]
    if spec.get("suites"):
        own = pair_suites(spec["suites"])
        once = ["load", *(["bias"] * (2 * bool(own) + len(spec["suites"]) - len(own)))]
    # of the model alone, not of the baseline
    beyond = ["estimate", "cause"] if spec.get("patching") else []
    beyond += ["generate", "bias"] if spec.get("generation") else []
    return [*(once if spec.get("baseline") else ()), *once, *beyond, "plot"]


def _of_evaluate(spec: Mapping[str, Any]) -> list[str]:
    texts = ["evaluate"] * (2 if spec.get("baseline") else 1) if spec.get("text") else []
    return [*texts, *(["evaluate"] if spec.get("timing") else [])]
