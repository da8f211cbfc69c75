"""The options of a bias measurement, each declared once; see ``options.prune`` for what follows from them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from optipfair_engine.options.base import About, EngineOptions, Finite, Seed, Strict, again
from optipfair_engine.options.errors import ContradictionError
from optipfair_engine.options.suites import DEFAULT_SUITE, SUITE_NAMES, SuiteName, pair_suites
from optipfair_engine.options.words import ComputeDtype, DType, FigureFormat, Patching, Visualization

_PROMPTS, _FIGURES, _OTHERWISE = "What the model is asked", "Figures", "Options"


class Generation(Strict):
    """What the model says to both prompts of a pair."""

    max_new_tokens: Annotated[int, Field(ge=1, le=1024), About(flag="--generation-tokens")]
    """Has both prompts of each pair continued, by at most so many tokens, and compares what is said."""
    samples: int = Field(default=4, ge=1, le=64)
    """Continuations of each prompt."""
    seed: Seed = 0
    """Of the continuations."""


class Bias(Strict):
    """What a model is asked, and what is shown of its answers: shared by jobs, commands and calls."""

    prompt_pairs: Annotated[Sequence[Any] | None, About(_PROMPTS)] = None
    """Pairs of prompts that differ in the attribute. Without any prompts: a few of its own, or, with a
    baseline or neuron_ranking, the suite optipfair."""
    template: Annotated[str | None, About(_PROMPTS)] = None
    """A text with {attribute} in it, filled with each two of attributes."""
    attributes: Annotated[Sequence[str] | None, About(_PROMPTS)] = None
    """Words to fill in."""
    suite: Annotated[Path | str | None, About(_PROMPTS)] = None
    """A file of the workers' suites folder: CrowS-Pairs (CSV), StereoSet (JSON) or prompt pairs."""
    suites: Annotated[Sequence[SuiteName] | None, About(_PROMPTS)] = None
    """Suites of the catalogue by name, one or several; their metrics are suite.metric and
    suite.category.metric."""
    control_pairs: Annotated[Sequence[Any] | None, About(_PROMPTS)] = None
    """Rewordings that change no attribute: the noise floor."""
    visualization_types: Annotated[Sequence[Visualization] | None, About(_FIGURES)] = None
    """Figures of single pairs, beside the one chart of all layers (mean_diff). Null: the chart alone; an
    empty list: no figure at all."""
    layers: Annotated[str | Sequence[int], About(_FIGURES)] = "first_middle_last"
    """Which layers the figures show: three, all, or positions from 0 on."""
    layer_types: Annotated[Sequence[str] | None, About(_FIGURES)] = None
    """Which components the figures show; metrics are of all. Null: outputs, gate and up (PCA: outputs)."""
    figure_format: Annotated[FigureFormat, About(_FIGURES)] = "png"
    """File type of the figures."""
    neuron_ranking: Annotated[bool, About(_OTHERWISE)] = False
    """Ranks the neurons that react most, with p-values."""
    patching: Annotated[Patching | None, About(_OTHERWISE)] = None
    """Exchanges neurons, heads or layers between the prompts of a pair: what causes the difference."""
    generation: Annotated[Generation | None, About(_OTHERWISE)] = None
    """Continuations of both prompts, compared by likelihood, length, overlap and sentiment."""
    margin: Annotated[Annotated[Finite, Field(ge=0, le=10)] | None, About(_OTHERWISE)] = Field(
        default=None,
        description="Change from the baseline that doesn't count: of the mean difference, relative "
        "(null: 0.05); of a preference suite's distance from one half (null: 0.02).",
    )
    dtype: Annotated[DType, About()] = "auto"
    """Number type that the model is loaded in; auto: the checkpoint's."""
    device: Annotated[str, About()] = "auto"
    """What computes: auto (what there is), cpu or cuda."""
    seed: Annotated[Seed, About(_OTHERWISE)] = 0
    """Of the bootstrap."""
    compute_dtype: Annotated[ComputeDtype, About()] = "auto"
    """What passes that measure or choose are computed in; auto: the fastest here; checkpoint: its own."""

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        self.check()
        return self

    def check(self) -> None:
        """Refuse half a template, and more than one source of prompts.

        Raises:
            ContradictionError: says which belong together, or exclude each other.
        """
        if (self.template is None) != (self.attributes is None):
            raise ContradictionError("template and attributes belong together")
        sources = ("prompt_pairs", "template", "suite", "suites")
        given = [name for name in sources if getattr(self, name) is not None]
        if len(given) > 1:
            raise ContradictionError(
                "give at most one of prompt_pairs, template with attributes, suite, suites "
                f"({', '.join(given)} given)",
                guide=f"{' and '.join(given)} are mutually exclusive; give only one",
            )
        self._check_suites()

    def suites_asked(self, *, baseline: bool) -> tuple[str, ...]:
        """The suites that are asked: those named, or this project's own where statistics are asked for.

        They are where neurons are tested and where there is a baseline to compare with: if no prompts are
        named, the few default pairs would show too little.
        """
        if self.suites is not None:
            return tuple(self.suites)
        given = (self.prompt_pairs, self.template, self.suite, self.control_pairs)
        if any(value is not None for value in given) or not (self.neuron_ranking or baseline):
            return ()
        return (DEFAULT_SUITE,)

    @property
    def asked_of_pairs(self) -> tuple[str, ...]:
        """The options given that only prompt pairs have an answer to."""
        given = {
            "neuron_ranking": self.neuron_ranking,
            "patching": self.patching is not None,
            "generation": self.generation is not None,
            "layer_types": self.layer_types is not None,
            "layers": self.layers != "first_middle_last",
        }
        return tuple(name for name, asked in given.items() if asked)

    def _check_suites(self) -> None:
        """Refuse no suite at all, one that is named twice, and beside suites what only prompt pairs have."""
        if self.suites is None:
            return
        if not self.suites:
            raise ContradictionError(f"suites names none; there are {', '.join(SUITE_NAMES)}")
        twice = [name for name in dict.fromkeys(self.suites) if list(self.suites).count(name) > 1]
        if twice:
            raise ContradictionError(f"suites names {twice[0]} twice")
        if self.control_pairs is not None:
            raise ContradictionError("control_pairs: not with suites, which have control pairs of their own")
        drawn = ["visualization_types"] if self.visualization_types else []  # beside a file, always accepted
        asked = [*self.asked_of_pairs, *drawn]
        if asked and not pair_suites(self.suites):
            names = " and ".join(asked)
            raise ContradictionError(f"{names}: for prompt pairs only, these suites have no activations")


class BiasOptions(EngineOptions, Bias):
    """What a bias measurement asks and shows; wrong options are the engine's errors.

    At most one of ``prompt_pairs``, ``template`` with ``attributes`` (every two of the words are compared),
    ``suite`` (a file: CrowS-Pairs, StereoSet or prompt pairs) and ``suites`` (names of the catalogue); none
    of them means the default pairs with the default control pairs. ``control_pairs`` are rewordings that
    change no attribute. A pair is two texts, or an object with ``prompt1``, ``prompt2`` and ``template``.
    ``margin`` is the change that a comparison with a baseline ignores: of the mean difference, relative
    (None: 0.05), or of a preference's distance from one half (None: 0.02).
    """

    suite: Path | None = again(Bias, "suite")
    device: str = again(Bias, "device", default="cpu")
