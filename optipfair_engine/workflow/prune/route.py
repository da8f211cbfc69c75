"""How a prune is carried out: in memory, tensor by tensor, or layer by layer; one function decides.

Nothing here needs torch, so that whoever plans a prune (a command that has yet to load anything, a service
that admits a job) can ask before it starts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from optipfair_engine.errors import InvalidOptionError, ModelTooLargeError
from optipfair_engine.headers import HeaderError, estimate_prune, holds_safetensors, inspect_model_folder
from optipfair_engine.options import rules

if TYPE_CHECKING:
    from optipfair_engine.options.prune import PruneOptions
    from optipfair_engine.options.words import VerifyLevel

#: What may be asked for.
Execution: TypeAlias = Literal["auto", "memory", "streamed"]


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
        memory_limit: what it may take; ``None`` for no limit.
    """

    obstacle: str | None = None
    calibration: bool = False
    evaluation: bool = False
    work: bool = False
    memory_bytes: int | None = None
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
        return cls(
            obstacle=None if holds_safetensors(source) else _no_safetensors(source),
            calibration=calibration,
            evaluation=evaluation,
            work=work,
            memory_bytes=None if memory_limit is None else _memory_bytes(source, options, calibration),
            memory_limit=memory_limit,
        )

    @property
    def fits(self) -> bool:
        """Whether the whole model may be in memory, as far as is known."""
        if self.memory_bytes is None or self.memory_limit is None:
            return True
        return self.memory_bytes <= self.memory_limit


def choose_route(options: PruneOptions, case: Case, execution: Execution = "auto") -> Route:
    """Decide how a prune is carried out.

    Asked for ``auto``, what is chosen by weights alone and checked without logits is streamed, and so is what
    memory is too small for, if it can be; all else goes by way of the model in memory. A work folder asks for
    ``streamed``, since only that has a state to keep.

    Raises:
        InvalidOptionError: an unknown word, or options that can't be had in the way that is asked for.
        ModelTooLargeError: the model doesn't fit the memory, and can't be streamed.
    """
    if execution not in get_args(Execution):
        raise InvalidOptionError(
            f"execution must be one of {', '.join(get_args(Execution))}; got {execution!r}"
        )
    if case.work and not case.calibration:
        raise InvalidOptionError("a work folder is for calibration: give calibration texts")
    if execution == "memory":
        return _in_memory_as_asked(options, case)
    if execution == "streamed" or case.work:
        _refuse_unstreamable(options, case)
        reason = "it was asked for" if execution == "streamed" else "a work folder is given"
        return Route("streamed", case.calibration, reason, options.verify)
    reasons = [*_reasons_for_memory(options, case)]
    if not reasons:
        reason = "the choice is by weights alone, so that tensors can go from file to file"
        return Route("streamed", False, reason, options.verify)
    if case.fits:
        return Route("memory", False, reasons[0], options.verify)
    return _streamed_for_want_of_memory(options, case)


def _in_memory_as_asked(options: PruneOptions, case: Case) -> Route:
    if case.work:
        raise InvalidOptionError(
            "a work folder keeps the state of a streamed run, and in memory there is none: leave it out"
        )
    if not case.fits:
        raise ModelTooLargeError(f"{_too_large(case)}: ask for execution streamed, or for more memory")
    return Route("memory", False, "it was asked for", options.verify)


def _streamed_for_want_of_memory(options: PruneOptions, case: Case) -> Route:
    # logits would need the pruned model in memory, and the dense one before it: the structure is checked
    against = [name for name, hint in _need_whole_model(options) if name != _LOGITS]
    if case.evaluation:
        against.append("measuring perplexity")
    if case.obstacle is not None:
        against.append(case.obstacle)
    if against:
        raise ModelTooLargeError(f"{_too_large(case)}, and it can't be streamed: {'; '.join(against)}")
    verify: VerifyLevel = "structure" if options.verify == "logits" else options.verify
    return Route("streamed", case.calibration, _too_large(case), verify)


_LOGITS = 'verify="logits"'


def _need_whole_model(options: PruneOptions) -> Iterator[tuple[str, str]]:
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
    if options.verify == "logits":
        yield _LOGITS, ' (use "structure")'


def _reasons_for_memory(options: PruneOptions, case: Case) -> Iterator[str]:
    """Why a prune is not streamed tensor by tensor of its own accord; nothing if it is."""
    if case.calibration:
        yield "calibration runs the whole model, where it fits the memory"
    if case.evaluation:
        yield "perplexity is measured on the whole model"
    yield from (f"{name} looks at more than the weights" for name in rules.chooses_by_text(options))
    yield from (f"{name} needs the whole model" for name, _ in _need_whole_model(options))
    if case.obstacle is not None:
        yield case.obstacle


def _refuse_unstreamable(options: PruneOptions, case: Case) -> None:
    """Refuse what can't be had without the whole model, or has no state to keep."""
    if case.evaluation:
        raise InvalidOptionError("out of core, perplexity is not measured: evaluate the result on its own")
    refused = [name + hint for name, hint in _need_whole_model(options)]
    if case.work and options.pruning_type == "DEPTH":
        refused.append("a work folder (depth pruning keeps no state)")
    if refused:
        raise InvalidOptionError(f"out of core, this can't be done: {', '.join(refused)}")
    if case.obstacle is not None:
        raise InvalidOptionError(f"out of core, {case.obstacle}")


def _no_safetensors(source: Path) -> str:
    return (
        "weights are read tensor by tensor from a folder with safetensors, and "
        f"{source.name} is none (a GGUF file is converted as it is loaded: prune it in memory)"
    )


def _too_large(case: Case) -> str:
    needed, limit = ((size or 0) / 1e9 for size in (case.memory_bytes, case.memory_limit))
    return f"the model takes about {needed:.2f} GB of memory to prune, and there are {limit:.2f} GB"


def _memory_bytes(source: Path, options: PruneOptions, calibration: bool) -> int | None:
    """The estimated need of a prune in memory; ``None`` where the model's headers can't be read."""
    try:
        facts = inspect_model_folder(source)
    except HeaderError:  # loading the model says what is wrong with it
        return None
    return estimate_prune(facts, spec_of(options, calibration)).peak_memory_bytes


def spec_of(options: PruneOptions, calibration: bool) -> dict[str, Any]:
    """The options under the names of a job's spec, as estimates and the readers of headers take them."""
    same = ("preset", "pruning_type", "compensation", "dtype", "layer_indices")
    size = rules.asked_layers if options.pruning_type == "DEPTH" else rules.asked_size
    texts = {"source": "given", "max_length": options.max_length, "num_samples": options.num_samples or 128}
    return {
        **{name: getattr(options, name) for name in same},
        **size(options),
        "calibration": texts if calibration else None,
        "healing": None if options.healing_seconds is None else {"max_seconds": options.healing_seconds},
    }
