"""How text is cut: into samples to calibrate on, and into windows to measure on."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from optipfair_engine.options.base import About, Strict

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


class EvaluationCut(Strict):
    """How the text that perplexity is measured on is cut; calibration has no say in it."""

    evaluation_max_length: Annotated[int, Field(ge=2), About("Running", in_memory=False)] = WINDOW_LENGTH
    """Tokens in a window of the evaluation text: perplexities over other windows can't be compared."""
    evaluation_num_windows: Annotated[int, Field(ge=1), About("Running", in_memory=False)] = WINDOWS
    """At most how many windows are scored, spread over the evaluation text."""
