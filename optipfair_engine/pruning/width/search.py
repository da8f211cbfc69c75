"""Searched widths: a staged evolutionary search that moves neurons from layer to layer at an equal size.

As in DarwinLM (Tang et al. 2025, arXiv:2502.07780) and Týr-the-Pruner (Li et al. 2025, arXiv:2503.09657):
offspring of the best division so far moves a unit of the budget from one layer to another; all children are
judged on few tokens, the best of them on more. What is judged is the whole model with its layers refitted,
by KL(dense ‖ candidate) of the next token, since errors of different layers don't simply add.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from optipfair_engine.calibration.runner import eval_mode
from optipfair_engine.computing.products import fast_products
from optipfair_engine.plans.apply import narrowed_in_passing
from optipfair_engine.progress import Reporter, null_reporter

if TYPE_CHECKING:
    from optipfair_engine.architectures import ModelView
    from optipfair_engine.plans.plan import PruningPlan

#: How long a search takes unless it is told.
DEFAULT_SECONDS: Final = 300.0

#: Children of a generation, and how many of them are judged on all tokens.
OFFSPRING: Final = 6
SURVIVORS: Final = 2

#: A unit of the budget is this share of a layer's neurons, in whole multiples of the divisor.
UNITS_OF_A_LAYER: Final = 32

#: Most probabilities of the dense model that are kept: the tokens that are judged on, times the vocabulary.
_MOST_KEPT: Final = 2**25
#: Of the tokens that are judged on, those that all children see.
_FEW: Final = 4

Widths = dict[int, int]


@dataclass(frozen=True)
class Budget:
    """What widths may be: between ``least`` and their layer's size, moved by ``unit``, the same in total."""

    sizes: Mapping[int, int]
    least: int
    unit: int

    def neighbour(self, widths: Mapping[int, int], draw: random.Random) -> Widths:
        """Widths with one to three units moved, each from one layer to another."""
        found = dict(widths)
        for _ in range(draw.randint(1, 3)):
            givers = [layer for layer, width in found.items() if width - self.unit >= self.least]
            takers = [layer for layer, width in found.items() if width + self.unit <= self.sizes[layer]]
            pairs = [(a, b) for a in givers for b in takers if a != b]
            if pairs:
                giver, taker = draw.choice(pairs)
                found[giver] -= self.unit
                found[taker] += self.unit
        return found


@dataclass
class Judge:
    """KL(dense ‖ candidate) in nats a token, on windows that neither refit nor the last word has seen.

    Attributes:
        view: of the dense model, in memory or mapped from its files.
        plan_of: widths → the plan that narrows and refits each layer.
        windows: of token ids; cut so that the dense model's probabilities fit the memory.
    """

    view: ModelView
    plan_of: Callable[[Mapping[int, int]], PruningPlan]
    windows: Sequence[Sequence[int]]
    judged: int = 0
    _dense: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Cut the windows, and ask the dense model."""
        vocabulary = int(self.view.config.vocab_size)
        each = max(2, _MOST_KEPT // vocabulary // len(self.windows))
        self.windows = [list(window)[:each] for window in self.windows]
        self._dense = self._predictions(len(self.windows))

    def few(self) -> int:
        """How many windows all children are judged on."""
        return -(-len(self.windows) // _FEW)

    def divergence(self, widths: Mapping[int, int], windows: int) -> float:
        """Mean KL on the first ``windows`` windows."""
        self.judged += 1
        with narrowed_in_passing(self.view, self.plan_of(widths)):
            found = self._predictions(windows)
        # the target is the dense model's distribution, and both are given as logarithms
        parts = [
            torch.nn.functional.kl_div(ours, dense, reduction="sum", log_target=True).double()
            for ours, dense in zip(found, self._dense, strict=False)
        ]
        return float(sum(parts) / sum(map(len, found)))

    def _predictions(self, windows: int) -> list[Tensor]:
        model = self.view.model
        device = next(model.parameters()).device
        with eval_mode(model), torch.no_grad(), fast_products(model):
            rows = [torch.tensor(window, device=device)[None] for window in self.windows[:windows]]
            return [model(input_ids=ids, use_cache=False).logits[0].float().log_softmax(-1) for ids in rows]


@dataclass(frozen=True)
class Found:
    """The best widths, their KL and that of the best start, and how many candidates were judged."""

    widths: Widths
    divergence: float
    start_divergence: float
    judged: int


class Memory:
    """Where a search leaves its state so that it can go on; this one forgets it."""

    def recall(self) -> dict[str, Any] | None:
        """What was left, if it is there."""
        return None

    def keep(self, state: Mapping[str, Any]) -> None:
        """Leave a state, which is plain JSON."""


def search_widths(
    judge: Judge,
    starts: Sequence[Mapping[int, int]],
    budget: Budget,
    *,
    max_seconds: float = DEFAULT_SECONDS,
    seed: int = 0,
    memory: Memory | None = None,
    report: Reporter = null_reporter,
    clock: Callable[[], float] = time.monotonic,
) -> Found:
    """The best division of the budget that was found in the time.

    Args:
        judge: of candidates.
        starts: widths of an equal total; the best of them is where the search starts.
        budget: what widths may be.
        max_seconds: time for all of it, that of an interrupted search before it included; one generation is
            gone through, however long it takes.
        seed: of the moves; each generation draws anew from it, so that a search that goes on moves as one
            that was never interrupted.
        memory: where the state of each generation is left, and taken up again.
        report: progress, stage "search", in per cent of the time.
        clock: what ``max_seconds`` is measured by.
    """
    memory, begun = memory or Memory(), clock()
    state = memory.recall() or _begin(judge, starts)
    used = float(state["seconds"])
    while (spent := used + clock() - begun) < max_seconds or state["generation"] == 0:
        report("search", min(100, round(100 * spent / max_seconds)), 100, _said(state))
        draw = random.Random(f"{seed}/{state['generation']}")  # noqa: S311  # it moves neurons
        state = _next_generation(judge, budget, state, draw) | {"seconds": used + clock() - begun}
        memory.keep(state)
    report("search", 100, 100, _said(state))
    return Found(_widths(state), state["divergence"], state["start"], int(state["judged"]))


def _begin(judge: Judge, starts: Sequence[Mapping[int, int]]) -> dict[str, Any]:
    found = [(judge.divergence(widths, len(judge.windows)), i) for i, widths in enumerate(starts)]
    least, best = min(found)
    return {
        "widths": {str(layer): width for layer, width in starts[best].items()},
        "divergence": least,
        "start": least,
        "generation": 0,
        "judged": len(starts),
        "seconds": 0.0,
    }


def _next_generation(
    judge: Judge, budget: Budget, state: Mapping[str, Any], draw: random.Random
) -> dict[str, Any]:
    """The state with the best of the parent and its children."""
    parent, before = _widths(state), judge.judged
    children = [budget.neighbour(parent, draw) for _ in range(OFFSPRING)]
    few = judge.few()
    ranked = sorted((judge.divergence(widths, few), i) for i, widths in enumerate(children))
    best, least = parent, float(state["divergence"])
    for _, child in ranked[:SURVIVORS]:
        found = judge.divergence(children[child], len(judge.windows))
        if found < least:
            best, least = children[child], found
    return {
        **state,
        "widths": {str(layer): width for layer, width in best.items()},
        "divergence": least,
        "generation": int(state["generation"]) + 1,
        "judged": int(state["judged"]) + judge.judged - before,
    }


def _widths(state: Mapping[str, Any]) -> Widths:
    return {int(layer): int(width) for layer, width in state["widths"].items()}


def _said(state: Mapping[str, Any]) -> str:
    return f"{state['judged']} candidates, divergence {state['divergence']:.4f} (start {state['start']:.4f})"


@dataclass
class Pieces:
    """Each layer narrowed to a width, solved once: a candidate is put together from them.

    Attributes:
        empty: a plan of the model that keeps all.
        solve: (layer, width) → kept neurons, and its refitted weight by state-dict name.
        most: how many pieces are kept; those that were used longest ago go first.
    """

    empty: PruningPlan
    solve: Callable[[int, int], tuple[tuple[int, ...], dict[str, Tensor]]]
    sizes: Mapping[int, int]
    most: int
    _known: dict[tuple[int, int], tuple[tuple[int, ...], dict[str, Tensor]]] = field(default_factory=dict)

    def plan_of(self, widths: Mapping[int, int]) -> PruningPlan:
        """The plan of these widths."""
        found = {layer: self._piece(layer, w) for layer, w in widths.items() if w < self.sizes[layer]}
        weights = {name: weight for _, some in found.values() for name, weight in some.items()}
        return replace(
            self.empty, kept_neurons={layer: kept for layer, (kept, _) in found.items()}, weights=weights
        )

    def _piece(self, layer: int, width: int) -> tuple[tuple[int, ...], dict[str, Tensor]]:
        piece = self._known.pop((layer, width), None) or self.solve(layer, width)
        self._known[layer, width] = piece
        while len(self._known) > self.most:
            del self._known[next(iter(self._known))]
        return piece
