"""The part of an evaluation that is about dynamic pruning, beside the dense model and a baseline."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from optipfair_engine.errors import Caution, InvalidOptionError, as_warnings
from optipfair_engine.evaluation.benchmarks import Way, time_ways
from optipfair_engine.evaluation.continuation import continuation_perplexity, prompt_length
from optipfair_engine.options.evaluation import LEAST_PROMPT_TOKENS
from optipfair_engine.progress import Reporter
from optipfair_engine.pruning.dynamic import DynamicPruning, dynamic_pruning
from optipfair_engine.workflow.common import LoadedModel

#: What is timed where no prompt is given: long enough to choose neurons by.
LONG_PROMPTS = (
    "The river had been rising since the early morning, and by noon the people of the village were carrying "
    "their furniture up the hill to the old school, where the teacher had opened every room. Nobody could "
    "remember",
    "A library keeps more than books. It keeps the habits of those who read them: which pages are worn, "
    "which margins are full of notes, and which shelves have gathered dust for a generation. When a library "
    "moves, the first thing that",
)

#: Sizes, and perplexities, that differ by less than this share count as equal.
_ALIKE, _ROUNDING = 0.02, 0.001


class DynamicEvaluation:
    """Measures dynamic pruning of the first of ``models``, of which the other is a baseline.

    Args:
        models: "" and, where there is a baseline, "_baseline".
        keep_percentage: see ``dynamic_pruning``.
        cut: the windows of the text for each model; empty without a text.
        prompts: what is continued.

    Raises:
        InvalidOptionError: a prompt, or every window, is too short to choose neurons by.
        UnsupportedModelError: see ``dynamic_pruning``.
    """

    def __init__(
        self,
        models: Mapping[str, LoadedModel],
        keep_percentage: float,
        cut: Mapping[str, Sequence[Sequence[int]]],
        prompts: Sequence[str],
    ) -> None:
        self._models, self._keep, self._cut = models, keep_percentage, cut
        self._states: list[DynamicPruning] = []
        self._windows = {suffix: _long_enough(windows) for suffix, windows in cut.items()}
        self._check(prompts)
        with self.block() as state:
            self._active = state.active_parameters

    @contextmanager
    def block(self) -> Iterator[DynamicPruning]:
        """A ``dynamic_pruning`` block of the model."""
        with dynamic_pruning(self._models[""].model, self._keep) as state:
            self._states.append(state)
            yield state

    def _check(self, prompts: Sequence[str]) -> None:
        least = LEAST_PROMPT_TOKENS
        if self._cut and not all(self._windows.values()):
            raise InvalidOptionError(
                f"dynamic: no window of the text has {2 * least} tokens, half of which are read as a prompt: "
                "give longer texts"
            )
        for number, prompt in enumerate(prompts, 1):
            tokens = len(self._models[""].tokenizer(prompt)["input_ids"])
            if tokens < least:
                raise InvalidOptionError(
                    f"dynamic: prompt {number} has {tokens} tokens, too few to choose neurons by: give "
                    f"prompts of at least {least}"
                )

    def metrics(
        self,
        timed: Sequence[str],
        max_new_tokens: int,
        num_runs: int,
        warmup_runs: int,
        report: Reporter,
        warned: Sequence[Mapping[str, str]] = (),
    ) -> dict[str, Any]:
        """What is measured over the text, if there is one, and by generating behind the prompts ``timed``.

        ``warned``: the warnings that there are already.
        """
        found = self._facts()
        if self._cut:
            found |= self._perplexities(report)
        if timed:
            found |= self._speeds(timed, max_new_tokens, num_runs, warmup_runs, report)
        found["dynamic"]["selection"] = self._selection
        warnings = [*warned, *as_warnings(self._cautions(found))]
        return {**found, "warnings": warnings} if warnings else found

    def _perplexities(self, report: Reporter) -> dict[str, Any]:
        """Perplexity of what follows prompts: with the chosen neurons, with all, and the baseline's."""
        windows, model = self._windows[""], self._models[""].model
        dense = continuation_perplexity(model, windows, report, named="dense continuation")
        with self.block() as state:
            pruned = continuation_perplexity(
                model, windows, report, following=state.continuation, named="dynamic continuation"
            )
        found = {
            "dynamic_perplexity": pruned,
            "dynamic_perplexity_dense": dense,
            "dynamic_perplexity_ratio": pruned / dense,
            "dynamic_windows": len(windows),
        }
        if "_baseline" in self._models:
            other = self._models["_baseline"].model
            found["dynamic_perplexity_baseline"] = continuation_perplexity(
                other, self._windows["_baseline"], report, named="baseline's continuation"
            )
        return found

    def _speeds(
        self,
        prompts: Sequence[str],
        max_new_tokens: int,
        num_runs: int,
        warmup_runs: int,
        report: Reporter,
    ) -> dict[str, Any]:
        """Tokens a second with the chosen neurons, with all, and the baseline's, run by run in turn."""
        main = self._models[""]
        ways = {"": Way(main.model, self.block), "_dense": Way(main.model)}
        if "_baseline" in self._models:
            ways["_baseline"] = Way(self._models["_baseline"].model)
        timings = time_ways(
            list(ways.values()), main.tokenizer, prompts, max_new_tokens, num_runs, warmup_runs, report=report
        )
        found = {
            f"dynamic_tokens_per_second{suffix}": timing["tokens_per_second"]
            for suffix, timing in zip(ways, timings, strict=True)
        }
        ratio = found["dynamic_tokens_per_second"] / found["dynamic_tokens_per_second_dense"]
        return {**found, "dynamic_tokens_per_second_ratio": ratio}

    @property
    def _selection(self) -> str:
        """Whether each prompt had neurons of its own, or prompts that were given together shared them."""
        return "batch" if any(state.selection == "batch" for state in self._states) else "prompt"

    def _facts(self) -> dict[str, Any]:
        """What is pruned, and how many parameters a token then uses."""
        said: dict[str, Any] = {"keep_percentage": self._keep}
        if self._cut:
            said["prompt_tokens"] = max(map(prompt_length, self._windows[""]))
        found = {"dynamic": said, "dynamic_active_parameters": self._active}
        if "_baseline" in self._models:
            found["dynamic_parameters_baseline"] = _parameters(self._models["_baseline"])
        return found

    def _cautions(self, metrics: Mapping[str, Any]) -> list[Caution]:
        """What whoever reads the ``metrics`` must know."""
        return [*self._left_out(), *self._of_baseline(metrics)]

    def _left_out(self) -> Iterator[Caution]:
        given, used = (len(windows.get("", ())) for windows in (self._cut, self._windows))
        if used < given:
            yield Caution(
                "dynamic_windows_short",
                f"{given - used} of {given} windows have fewer than {2 * LEAST_PROMPT_TOKENS} tokens, and "
                "say nothing of dynamic pruning: their halves are too short to choose neurons by",
            )

    def _of_baseline(self, metrics: Mapping[str, Any]) -> Iterator[Caution]:
        size, active = metrics.get("dynamic_parameters_baseline"), self._active
        if size is None:
            return
        if abs(size / active - 1) > _ALIKE:
            yield Caution(
                "dynamic_sizes_differ",
                f"behind a prompt a token is computed with {active:,} of the model's parameters, and with "
                f"{size:,} of the baseline's: their figures aren't of the same size",
            )
        ours, theirs = metrics.get("dynamic_perplexity"), metrics.get("dynamic_perplexity_baseline")
        comparable = size <= active * (1 + _ALIKE) and self._windows.get("") == self._windows.get("_baseline")
        if comparable and ours and theirs and theirs < ours * (1 - _ROUNDING):
            yield Caution(
                "dynamic_behind_baseline",
                "the baseline continues the text better than dynamic pruning (perplexity "
                f"{theirs:.4g}, against {ours:.4g}) with no more parameters: use the baseline instead",
            )


def _long_enough(windows: Sequence[Sequence[int]]) -> list[Sequence[int]]:
    return [window for window in windows if prompt_length(window) >= LEAST_PROMPT_TOKENS]


def _parameters(loaded: LoadedModel) -> int:
    return sum(parameter.numel() for parameter in loaded.model.parameters())
