"""The whole result of a bias job."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from optipfair_engine.bias.results.cause import Cause
from optipfair_engine.bias.results.changes import Comparison
from optipfair_engine.bias.results.continuations import ContinuationChanges
from optipfair_engine.bias.results.differences import ActivationSummary, RankedNeurons
from optipfair_engine.bias.results.generations import Generations
from optipfair_engine.bias.results.scores import SuiteScores
from optipfair_engine.bias.results.suites import PairSuiteResult, SuiteResult
from optipfair_engine.errors import Caution


@dataclass(frozen=True)
class BiasResult:
    """What was found of ``model``, and what changed from ``baseline``; parts that were not asked are None.

    ``figures`` are the names of the files drawn.
    """

    model: str
    baseline: str | None = None
    activations: ActivationSummary | None = None
    neurons: RankedNeurons | None = None
    cause: Cause | None = None
    generations: Generations | None = None
    behaviour: SuiteScores | None = None
    baseline_behaviour: SuiteScores | None = None
    comparison: Comparison | None = None
    continuations: ContinuationChanges | None = None
    suites: tuple[SuiteResult, ...] = ()
    pair_suites: tuple[PairSuiteResult, ...] = ()
    figures: tuple[str, ...] = ()
    figure_warnings: tuple[str, ...] = ()

    @property
    def warnings(self) -> tuple[str, ...]:
        """Every part's warnings, each once."""
        return tuple(dict.fromkeys(caution.message for caution in self.cautions()))

    def cautions(self) -> list[Caution]:
        """The warnings under codes that say what they are about."""
        parts = {
            "bias_activations": self.activations,
            "bias_comparison": self.comparison,
            "bias_continuations": self.continuations,
            "bias_neurons": self.neurons,
            "bias_cause": self.cause,
            "bias_generation": self.generations,
            "bias_suite": self.behaviour,
        }
        found = {code: part.warnings for code, part in parts.items() if part is not None}
        found["bias_figures"] = self.figure_warnings
        cautions = [Caution(code, text) for code, texts in found.items() for text in texts]
        return cautions + [Caution("bias_suite", text) for suite in self.suites for text in suite.warnings]

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready: ``bias_summary.json``."""
        parts = {
            "activations": self.activations,
            "neurons": self.neurons,
            "cause": self.cause,
            "generations": self.generations,
            "behaviour": self.behaviour,
            "baseline_behaviour": self.baseline_behaviour,
            "comparison": self.comparison,
            "continuations": self.continuations,
        }
        found = {name: part.as_dict() for name, part in parts.items() if part is not None}
        if self.suites or self.pair_suites:
            found["suites"] = {
                **{suite.name: suite.as_dict() for suite in self.pair_suites},
                **{suite.name: suite.as_dict() for suite in self.suites},
            }
        return {"model": self.model, "baseline": self.baseline, **found}

    def flat(self) -> dict[str, object]:
        """One level of numbers, words and nulls for gates: no name here means two things."""
        flat: dict[str, object] = {}
        for part in (self.activations, self.neurons, self.cause, self.generations, self.behaviour):
            flat.update(part.flat() if part is not None else {})
        if self.baseline_behaviour is not None:
            values = self.baseline_behaviour.values()
            flat.update({f"{name}_baseline": value for name, value in values.items()})
        for change in (self.comparison, self.continuations):
            flat.update(change.flat() if change is not None else {})
        for own in self.pair_suites:
            flat.update(own.flat())
        for suite in self.suites:
            flat.update(suite.flat())
        return flat
