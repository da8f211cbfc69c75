"""Bodies of `/v1/uploads`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from api.models import Model
from jobs.uploads.declaring import MAX_FILES

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]


class UploadFileRequest(Model, extra="forbid", strict=True):
    """A file that is going to be sent."""

    name: Name
    size: int = Field(ge=0, lt=2**53)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class UploadRequest(Model, extra="forbid", strict=True):
    """A model's files, or one text: a calibration file or a suite."""

    kind: Literal["model", "calibration", "suite"]
    name: Name
    files: list[UploadFileRequest] = Field(min_length=1, max_length=MAX_FILES)


class UploadFile(Model):
    """A file of an upload; `offset` is the first byte that is missing."""

    name: str
    size: int
    sha256: str
    state: Literal["missing", "partial", "here"]
    offset: int


class Upload(Model):
    """Files under one name; `{"source": "upload", "id": …}` names it in a job once it is complete."""

    id: str
    kind: str
    name: str
    state: Literal["open", "complete"]
    files: list[UploadFile]
    facts: dict[str, Any] | None = Field(description="what a complete model's headers say")
    created_at: str
    completed_at: str | None
    expires_at: str
    links: dict[str, str]


class UploadList(Model):
    """The tenant's uploads, newest first; of every tenant for `admin`."""

    items: list[Upload]
