"""Bodies of `/v1/trust`, `/v1/token` and `/v1/audit`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StrictBool, StrictInt, StrictStr, StringConstraints

from api.models import Model

_Text = Annotated[StrictStr, StringConstraints(min_length=1, max_length=512, pattern=r"^[^\x00-\x1f\x7f]+$")]
_Number = Annotated[StrictInt, Field(ge=-(2**63), lt=2**63)]
ClaimValue = StrictBool | _Number | _Text
ClaimName = Annotated[str, StringConstraints(pattern=r"^[\x21-\x7e]{1,128}$")]
TokenScope = Literal["jobs:read", "jobs:write"]


class TrustRequest(Model, extra="forbid", strict=True):
    """Whose tokens are exchanged for a key of which tenant; claims are compared exactly."""

    issuer: _Text = Field(description="the `iss` claim; keys are found by OpenID Connect discovery")
    audience: _Text = Field(description="the `aud` claim that a token must have")
    claims: Annotated[
        dict[ClaimName, ClaimValue | Annotated[list[ClaimValue], Field(min_length=1, max_length=64)]],
        Field(max_length=32, description="each with one value, or a list of those that are let in"),
    ]
    tenant: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")
    scopes: list[TokenScope] = Field(default=["jobs:read", "jobs:write"], min_length=1, max_length=2)


class Trust(Model):
    """A trust rule."""

    id: str
    issuer: str
    audience: str
    claims: dict[str, ClaimValue | list[ClaimValue]]
    tenant: str
    scopes: list[str]
    created_at: str


class TrustList(Model):
    """All trust rules."""

    items: list[Trust]


class Token(Model):
    """A short-lived key (RFC 8693, section 2.2.1)."""

    access_token: str
    issued_token_type: str
    token_type: Literal["Bearer"] = "Bearer"  # noqa: S105 - a word of the protocol
    expires_in: int
    scope: str


class TokenError(Model):
    """Why there is none (RFC 6749, section 5.2)."""

    error: str
    error_description: str


class AuditEntry(Model):
    """One write: who did what to which thing, when, and by which request."""

    id: str
    time: str
    actor: dict[str, str] = Field(description="key_id, or the subject of a CI system's token")
    action: str
    object: str
    tenant: str
    request_id: str | None


class AuditPage(Model):
    """One page of the audit, newest first."""

    items: list[AuditEntry]
    next_cursor: str | None
