"""How text is cut into samples."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from optipfair_engine.options.base import About, Strict

#: The group of the command's help.
CALIBRATION = "Calibration"


class Cut(Strict):
    """How calibration text is cut into samples and batches."""

    max_length: Annotated[int, Field(ge=1), About(CALIBRATION, in_memory=False)] = 512
    """Tokens in a sample."""
    batch_size: Annotated[int, Field(ge=1), About(CALIBRATION, in_memory=False)] = 8
    """Samples in a batch: memory, not the result, depends on it."""
    num_samples: Annotated[int, Field(ge=1), About(CALIBRATION, in_memory=False)] = 128
    """At most how many samples are read."""
