"""The parts that specs are made of: bounded texts and numbers, and references to models and texts.

Unknown fields are errors, numbers are strict (no numeric strings, no bools), and everything is bounded.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    Field,
    StringConstraints,
    model_validator,
)

from jobs.ids import is_id
from optipfair_engine.options.base import Finite, Strict, again
from optipfair_engine.options.calibration import WINDOW_LENGTH, WINDOWS, Cut, OwnText

MAX_TEXTS = 4096
MAX_TEXT_LENGTH = 100_000
MAX_PROMPTS = 256

Device = Literal["auto", "cpu", "cuda"]
Component = Literal["attention_output", "mlp_output", "gate_proj", "up_proj", "down_proj", "input_norm"]


def _upload_id(value: str) -> str:
    if not is_id(value):
        raise ValueError("is not the id of an upload")
    return value


def _job_id(value: str) -> str:
    if not is_id(value):
        raise ValueError("is not the id of a job")
    return value


def _distinct(values: list[int]) -> list[int]:
    if len(set(values)) < len(values):
        raise ValueError("names a layer twice")
    return values


OpaqueName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
HubId = Annotated[
    str,
    StringConstraints(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,95}(\.[A-Za-z0-9_-]+)*(/[A-Za-z0-9][A-Za-z0-9_-]{0,95}(\.[A-Za-z0-9_-]+)*)?$",
        max_length=200,
    ),
]
Revision = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{40}$")]
JobId = Annotated[str, AfterValidator(_job_id)]
UploadId = Annotated[str, AfterValidator(_upload_id)]
StepName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,31}$")]
Text_ = Annotated[str, StringConstraints(min_length=1, max_length=MAX_TEXT_LENGTH)]
Texts = Annotated[list[Text_], Field(min_length=1, max_length=MAX_TEXTS)]
Prompt = Annotated[str, StringConstraints(min_length=1, max_length=10_000)]
LayerIndices = Annotated[
    list[Annotated[int, Field(ge=0, lt=10_000)]],
    Field(min_length=1, max_length=10_000, json_schema_extra={"uniqueItems": True}),
    AfterValidator(_distinct),
]


class NamedPair(Strict):
    """Two prompts, and the name of the template that they come from, which is what statistics count."""

    prompt1: Prompt
    prompt2: Prompt
    template: Prompt


PromptPair = Annotated[list[Prompt], Field(min_length=2, max_length=2)] | NamedPair


def _telling(pairs: list[list[str] | NamedPair]) -> list[list[str] | NamedPair]:
    """The pairs, if every one has a difference to measure: a gate on anything else would pass on nothing."""
    for number, pair in enumerate(pairs, 1):
        first, second = pair if isinstance(pair, list) else (pair.prompt1, pair.prompt2)
        for name, prompt in (("first", first), ("second", second)):
            if not prompt.strip():
                raise ValueError(f"pair {number}: the {name} prompt is blank")
        if first.strip() == second.strip():
            raise ValueError(f"pair {number}: the two prompts are equal; there is no difference to measure")
    return pairs


PromptPairs = Annotated[
    list[PromptPair], Field(min_length=1, max_length=MAX_PROMPTS), AfterValidator(_telling)
]


class LocalModelRef(Strict):
    """A model in the workers' models folder, by its opaque name."""

    source: Literal["local"]
    name: OpaqueName


class HubModelRef(Strict):
    """A model on the hub at a pinned commit."""

    source: Literal["hub"]
    id: HubId
    revision: Revision


class JobModelRef(Strict):
    """The checkpoint that an earlier job of the same tenant wrote; of a pipeline, one of its steps'."""

    source: Literal["job"]
    job_id: JobId
    step: StepName | None = None
    """Which prune step of a pipeline."""


class StepModelRef(Strict):
    """The checkpoint that an earlier step of the same pipeline wrote."""

    source: Literal["step"]
    name: StepName


class StepRef(Strict):
    """What an earlier step of the same pipeline measured."""

    source: Literal["step"]
    name: StepName


class UploadRef(Strict):
    """Files that the same tenant has uploaded: a model, or a suite."""

    source: Literal["upload"]
    id: UploadId


ModelRef = Annotated[
    LocalModelRef | HubModelRef | JobModelRef | StepModelRef | UploadRef, Field(discriminator="source")
]


class OfModel(Strict):
    """A job that does something with a model."""

    model: ModelRef


class _Samples(Cut):
    """Text to calibrate on, from one of several sources."""

    texts: Texts | None = None
    """The texts themselves, or else a file or data set (source)."""
    source: str | None = None
    name: OpaqueName | None = None
    id: UploadId | None = None
    dataset: HubId | None = None
    max_length: Annotated[int, Field(ge=1, le=32_768)] = again(Cut, "max_length")
    batch_size: Annotated[int, Field(ge=1, le=256)] = again(Cut, "batch_size")
    num_samples: Annotated[int, Field(ge=1, le=100_000)] = again(Cut, "num_samples")

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        self.check()
        return self

    def check(self) -> None:
        """Refuse no text, text from two sources, and a source without what it needs."""
        places = {"texts": None, "name": "local", "id": "upload", "dataset": "hub"}
        given = [place for place in places if getattr(self, place) is not None]
        if len(given) != 1 or places[given[0]] != self.source:
            raise ValueError(
                'give texts, or source "local" with name, "upload" with id, or "hub" with dataset'
            )


class CalibrationRef(_Samples):
    """Text to calibrate on: `texts`, a named local file, an upload, or a hub dataset; exactly one."""

    source: Literal["local", "hub", "upload"] | None = None


class PruneCalibrationRef(_Samples):
    """Text to calibrate on, as elsewhere, or `source` "model": text that the model writes itself."""

    source: Literal["local", "hub", "upload", "model"] | None = None
    mix_self: Annotated[Finite, Field(gt=0, le=0.9)] | None = again(OwnText, "mix_self")

    def check(self) -> None:
        """The same; a model that writes all of the text leaves no place for any other."""
        if self.source != "model":
            super().check()
            return
        others = ("texts", "name", "id", "dataset", "mix_self")
        given = [name for name in others if getattr(self, name) is not None]
        if given:
            raise ValueError(f'{", ".join(given)}: not with source "model", which writes all of the text')


class TextRef(Strict):
    """Text to measure on: `texts`, a named local file, or an upload."""

    texts: Texts | None = None
    source: Literal["local", "upload"] | None = None
    name: OpaqueName | None = None
    id: UploadId | None = None
    max_length: Annotated[int, Field(ge=2, le=32_768)] = WINDOW_LENGTH
    """Tokens in a window: perplexities over other windows can't be compared."""
    num_windows: Annotated[int, Field(ge=1, le=100_000)] = WINDOWS
    """At most how many windows are scored, spread over the text."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        places = {"texts": None, "name": "local", "id": "upload"}
        given = [place for place in places if getattr(self, place) is not None]
        if len(given) != 1 or places[given[0]] != self.source:
            raise ValueError('give texts, or source "local" with name, or source "upload" with id')
        return self
