"""How text is cut: into samples to calibrate on, and into windows to measure on."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from optipfair_engine.options.base import About, Finite, Strict

#: The group of the command's help.
CALIBRATION = "Calibration"

#: How long the windows of perplexity are, and how many, unless told otherwise.
WINDOW_LENGTH, WINDOWS = 512, 40


class Cut(Strict):
    """How calibration text is cut into samples and batches."""

    max_length: Annotated[int, Field(ge=1), About(CALIBRATION, in_memory=False)] = 512
    """Tokens in a sample."""
    batch_size: Annotated[int, Field(ge=1), About(CALIBRATION, in_memory=False)] = 8
    """Samples in a batch: memory, not the result, depends on it."""
    num_samples: Annotated[int, Field(ge=1), About(CALIBRATION, in_memory=False)] = 128
    """At most how many samples are read."""


class ModelItself(Strict):
    """Calibration on text that the model writes itself."""

    source: Annotated[Literal["model"], About(CALIBRATION)]
    """model: it is calibrated on text that it writes itself, num_samples of them; not beside other text."""


class OwnText(Strict):
    """What part text has that the model writes itself, token by token, as it was trained to."""

    calibration: Annotated[ModelItself | None, About(CALIBRATION)] = None
    """Whether the model writes all of the calibration text; a preset without any text does that, too."""
    mix_self: Annotated[Annotated[Finite, Field(gt=0, lt=1)] | None, About(CALIBRATION)] = None
    """Share of samples that the model writes itself, which come on top of those of a narrow text."""


class EvaluationCut(Strict):
    """How the text that perplexity is measured on is cut; calibration has no say in it."""

    evaluation_max_length: Annotated[int, Field(ge=2), About("Running", in_memory=False)] = WINDOW_LENGTH
    """Tokens in a window of the evaluation text: perplexities over other windows can't be compared."""
    evaluation_num_windows: Annotated[int, Field(ge=1), About("Running", in_memory=False)] = WINDOWS
    """At most how many windows are scored, spread over the evaluation text."""
