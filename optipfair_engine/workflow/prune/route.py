"""How a prune is carried out: in memory, tensor by tensor, or layer by layer; one function decides.

Nothing here needs torch, so that whoever plans a prune (a command that has yet to load anything, a service
that admits a job) can ask before it starts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from optipfair_engine.errors import EngineError, InvalidOptionError, ModelTooLargeError
from optipfair_engine.headers import (
    HeaderError,
    ModelFacts,
    check_memory,
    estimate_prune,
    estimate_streamed,
    holds_safetensors,
    inspect_model_folder,
)
from optipfair_engine.options import rules

if TYPE_CHECKING:
    from optipfair_engine.options.fields import PruneFields
    from optipfair_engine.options.prune import PruneOptions
    from optipfair_engine.options.words import VerifyLevel


@dataclass(frozen=True)
class Route:
    """How a prune is carried out, and why.

    Attributes:
        execution: ``memory`` (the whole model) or ``streamed`` (from disk to disk).
        layerwise: streamed by calibration: one decoder layer at a time is run; otherwise tensor by tensor.
        reason: why, as a sentence without its full stop.
        verify: the level at which the result is checked: what the options ask for, or less where the route
            was taken for want of memory.
    """

    execution: Literal["memory", "streamed"]
    layerwise: bool
    reason: str
    verify: VerifyLevel


@dataclass(frozen=True)
class Case:
    """What decides on a route beside the options: facts of the model, and what else the caller hands over.

    Attributes:
        obstacle: why the model can't be read tensor by tensor; ``None`` if nothing is known against it.
        calibration: there is text to calibrate (or heal) on.
        evaluation: there is text to measure perplexity on.
        work: there is a folder for the state of a layer-by-layer run.
        memory_bytes: what the prune would take in memory; ``None`` if that is not known.
        streamed_bytes: what it would take streamed; ``None`` if that is not known.
        check_bytes: what comparing the result's logits would take; ``None`` if that is not known.
        memory_limit: what it may take; ``None`` for no limit.
    """

    obstacle: str | None = None
    calibration: bool = False
    evaluation: bool = False
    work: bool = False
    memory_bytes: int | None = None
    streamed_bytes: int | None = None
    check_bytes: int | None = None
    memory_limit: int | None = None

    @classmethod
    def of(
        cls,
        source: Path,
        options: PruneOptions,
        *,
        calibration: bool = False,
        evaluation: bool = False,
        work: bool = False,
        memory_limit: int | None = None,
    ) -> Case:
        """The case of a model folder or file, by its headers alone."""
        case = cls(
            obstacle=None if holds_safetensors(source) else _no_safetensors(source.name),
            calibration=calibration,
            evaluation=evaluation,
            work=work,
            memory_limit=memory_limit,
        )
        if memory_limit is None:
            return case
        try:
            facts = inspect_model_folder(source)
        except HeaderError:  # loading the model says what is wrong with it
            return case
        return case.sized(facts, spec_of(options, calibration, evaluation))

    @classmethod
    def of_spec(cls, facts: ModelFacts, spec: Mapping[str, Any], memory_limit: int | None) -> Case:
        """The case of a prune job's spec (as plain JSON) for a model that is known by its headers' facts."""
        case = cls(
            obstacle=_no_safetensors("the model") if facts.format == "gguf" else None,
            calibration=spec.get("calibration") is not None,
            evaluation=spec.get("evaluation") is not None,
            memory_limit=memory_limit,
        )
        return case.sized(facts, spec)

    def sized(self, facts: ModelFacts, spec: Mapping[str, Any]) -> Case:
        """The case with what each way would take of memory; ``spec`` as the estimates read it."""
        return replace(
            self,
            memory_bytes=estimate_prune(facts, spec).peak_memory_bytes,
            streamed_bytes=estimate_streamed(facts, spec).peak_memory_bytes,
            check_bytes=check_memory(facts, spec),
        )

    @property
    def fits(self) -> bool:
        """Whether the whole model may be in memory, as far as is known."""
        if self.memory_bytes is None or self.memory_limit is None:
            return True
        return self.memory_bytes <= self.memory_limit

    @property
    def fits_streamed(self) -> bool:
        """Whether streaming it may be in memory, as far as is known."""
        if self.streamed_bytes is None or self.memory_limit is None:
            return True
        return self.streamed_bytes <= self.memory_limit

    def level(self, asked: VerifyLevel) -> VerifyLevel:
        """At which level a streamed result is checked: its logits need memory for the pruned model."""
        if asked != "logits" or self.memory_limit is None:
            return asked
        known = self.check_bytes is not None and self.check_bytes <= self.memory_limit
        return "logits" if known else "structure"


def choose_route(options: PruneFields, case: Case) -> Route:
    """Decide how a prune is carried out, by its options (of the engine, or a job's spec).

    Asked for ``auto``, what is chosen by weights alone and checked without logits is streamed, and so is what
    memory is too small for, if it can be; all else goes by way of the model in memory. A work folder asks for
    ``streamed``, since only that has a state to keep.

    Raises:
        InvalidOptionError: options that can't be had in the way that is asked for.
        ModelTooLargeError: the model doesn't fit the memory, and can't be streamed.
    """
    execution = options.execution
    if case.work and not case.calibration:
        raise InvalidOptionError("a work folder is for calibration: give calibration texts")
    if execution == "memory":
        return _in_memory_as_asked(options, case)
    if execution == "streamed" or case.work:
        _refuse_unstreamable(options, case)
        if not case.fits_streamed:
            raise ModelTooLargeError(_too_large_streamed(case))
        reason = "it was asked for" if execution == "streamed" else "a work folder is given"
        return Route("streamed", case.calibration, reason, case.level(options.verify))
    reasons = [*_reasons_for_memory(options, case)]
    if not reasons:
        if not case.fits_streamed:
            raise ModelTooLargeError(_too_large_streamed(case))
        reason = "the choice is by weights alone, so that tensors can go from file to file"
        return Route("streamed", False, reason, options.verify)
    if case.fits:
        return Route("memory", False, reasons[0], options.verify)
    return _streamed_for_want_of_memory(options, case)


def route_or_problem(options: PruneFields, case: Case) -> Route | str:
    """:func:`choose_route`, or in words why it can't be carried out in any way."""
    try:
        return choose_route(options, case)
    except EngineError as error:
        return str(error)


def _in_memory_as_asked(options: PruneFields, case: Case) -> Route:
    if case.work:
        raise InvalidOptionError(
            "a work folder keeps the state of a streamed run, and in memory there is none: leave it out"
        )
    if not case.fits:
        raise ModelTooLargeError(f"{_too_large(case)}: ask for execution streamed, or for more memory")
    return Route("memory", False, "it was asked for", options.verify)


def _streamed_for_want_of_memory(options: PruneFields, case: Case) -> Route:
    against = [name for name, hint in _need_whole_model(options)]
    if options.writes_text:
        against.append(f"{_OWN_TEXT} (give calibration text)")
    if case.obstacle is not None:
        against.append(case.obstacle)
    if against:
        raise ModelTooLargeError(f"{_too_large(case)}, and it can't be streamed: {'; '.join(against)}")
    if not case.fits_streamed:
        raise ModelTooLargeError(f"{_too_large(case)}; {_too_large_streamed(case)}")
    return Route("streamed", case.calibration, _too_large(case), case.level(options.verify))


def _need_whole_model(options: PruneFields) -> Iterator[tuple[str, str]]:
    """The options that can't be had without the whole model in memory, and a hint at what can."""
    if options.healing_seconds is not None:
        yield "healing", ""
    if options.fairness is not None:
        yield "fairness", ""
    if options.keep_statistics:
        yield "keep_statistics", " (the work folder keeps them)"
    if options.dtype != "auto":
        yield f"dtype {options.dtype}", ""
    if options.device not in ("auto", "cpu"):
        yield f"device {options.device}", ""


def _reasons_for_memory(options: PruneFields, case: Case) -> Iterator[str]:
    """Why a prune is not streamed tensor by tensor of its own accord; nothing if it is."""
    if case.calibration:
        yield "calibration runs the whole model, where it fits the memory"
    if case.evaluation:
        yield "perplexity is measured on the whole model, where it fits the memory"
    yield from (f"{name} looks at more than the weights" for name in rules.chooses_by_text(options))
    yield from (f"{name} needs the whole model" for name, _ in _need_whole_model(options))
    if options.verify == "logits":
        yield 'verify="logits" compares with the model in memory, where it fits'
    if case.obstacle is not None:
        yield case.obstacle


def _refuse_unstreamable(options: PruneFields, case: Case) -> None:
    """Refuse what can't be had without the whole model, or has no state to keep."""
    refused = [name + hint for name, hint in _need_whole_model(options)]
    if case.work and options.pruning_type == "DEPTH":
        refused.append("a work folder (depth pruning keeps no state)")
    if refused:
        raise InvalidOptionError(f"out of core, this can't be done: {', '.join(refused)}")
    if case.obstacle is not None:
        raise InvalidOptionError(f"out of core, {case.obstacle}")
    if options.writes_text and not case.fits:
        raise ModelTooLargeError(
            f"{_OWN_TEXT} needs all of it, token by token, and {_too_large(case)}: give calibration text"
        )


_OWN_TEXT = "calibration text that the model writes itself"


def _no_safetensors(name: str) -> str:
    return (
        "weights are read tensor by tensor from a folder with safetensors, and "
        f"{name} is none (a GGUF file is converted as it is loaded: prune it in memory)"
    )


def _too_large(case: Case) -> str:
    needed, limit = ((size or 0) / 1e9 for size in (case.memory_bytes, case.memory_limit))
    return f"the model takes about {needed:.2f} GB of memory to prune, and there are {limit:.2f} GB"


def _too_large_streamed(case: Case) -> str:
    needed, limit = ((size or 0) / 1e9 for size in (case.streamed_bytes, case.memory_limit))
    return f"streamed it takes about {needed:.2f} GB of memory, and there are {limit:.2f} GB"


def spec_of(options: PruneOptions, calibration: bool, evaluation: bool) -> dict[str, Any]:
    """The options under the names of a job's spec, as estimates and the readers of headers take them."""
    same = ("preset", "pruning_type", "compensation", "allocation", "dtype", "layer_indices", "processes")
    size = rules.asked_layers if options.pruning_type == "DEPTH" else rules.asked_size
    texts = {
        "source": "given" if options.calibration is None else options.calibration.source,
        "max_length": options.max_length,
        "num_samples": options.num_samples or 128,
        "mix_self": options.mix_self,
    }
    windows = {
        "source": "given",
        "max_length": options.evaluation_max_length,
        "num_windows": options.evaluation_num_windows,
    }
    return {
        **{name: getattr(options, name) for name in same},
        **size(options),
        "calibration": texts if calibration else None,
        "evaluation": windows if evaluation else None,
        "healing": None if options.healing_seconds is None else {"max_seconds": options.healing_seconds},
        "search": None if options.search is None else options.search.model_dump(),
        "reconstruction": None if options.reconstruction is None else options.reconstruction.model_dump(),
    }
