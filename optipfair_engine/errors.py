"""The engine's errors and warnings: each has a stable ``code`` for scripts, and a text for people."""

from __future__ import annotations

import errno
from collections.abc import Collection, Iterable, Iterator
from dataclasses import asdict, dataclass

#: torch and safetensors have no type or number for exhausted memory, only these words.
_MEMORY_SIGNS = ("can't allocate memory", "Cannot allocate memory", "os error 12)", "out of memory")


class EngineError(Exception):
    """Any failure that the engine explains; ``code`` is stable, the text is for people."""

    code = "engine_error"


class InvalidOptionError(EngineError, ValueError):
    """An option is out of range or contradicts another one."""

    code = "invalid_option"


class UnsupportedModelError(EngineError, ValueError):
    """The model's family lacks what the operation needs; the text names it and what was looked for."""

    code = "unsupported_model"


class CheckpointError(EngineError, ValueError):
    """A checkpoint folder can't be read safely (missing, pickled, truncated, unreadable)."""

    code = "model_unreadable"

    def __init__(self, message: str, code: str | None = None) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code


class NonFiniteWeightsError(EngineError, ValueError):
    """A weight tensor holds NaN or infinity; the text names the tensor."""

    code = "weights_not_finite"


class NonFiniteResultError(EngineError, ValueError):
    """What a model computed is NaN or infinity; the text names where, and what number type would help."""

    code = "result_not_finite"


class ProcessLostError(EngineError):
    """One of the processes that calibrate together ended before it was done; the text says how."""

    code = "process_lost"


class ModelTooLargeError(EngineError, ValueError):
    """A model doesn't fit the memory that it may take; the text says what would."""

    code = "model_too_large"


class TokenizerError(EngineError, ValueError):
    """The model folder has no usable tokenizer, and the operation needs text."""

    code = "tokenizer_error"


class SuiteDataError(EngineError, ValueError):
    """The data of a bias suite are not here, or can't be fetched; the text says which file goes where."""

    code = "suite_unavailable"


class CalibrationError(EngineError, ValueError):
    """Calibration data is empty, unreadable, or gave no usable statistic."""

    code = "calibration_error"


class ReloadCheckError(EngineError):
    """A saved model did not reload to what was saved."""

    code = "reload_check_failed"


class PlanError(EngineError, ValueError):
    """A pruning plan doesn't fit the model that it is applied to, or is malformed."""

    code = "plan_invalid"


@dataclass(frozen=True)
class Caution:
    """What whoever uses a result must know of it; ``code`` is stable, the text is for people."""

    code: str
    message: str


def as_warnings(cautions: Iterable[Caution]) -> list[dict[str, str]]:
    """The ``warnings`` of metrics: code and message of each, no text twice."""
    by_text = {caution.message: caution for caution in reversed(list(cautions))}
    return [asdict(caution) for caution in reversed(by_text.values())]


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, what it came from, and so on."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this error (not what caused it) says that memory is exhausted, the GPU's or the host's."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return system_says(error, {errno.ENOMEM}, _MEMORY_SIGNS)


def system_says(error: BaseException, numbers: Collection[int], signs: Iterable[str]) -> bool:
    """Whether an error of the system or of native code has one of these numbers, or else these words."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in numbers  # the text quotes a file's name
    # no others by their text: ours may quote what users wrote
    native = isinstance(error, OSError | RuntimeError) or type(error).__name__ == "SafetensorError"
    return native and any(sign in str(error) for sign in signs)
