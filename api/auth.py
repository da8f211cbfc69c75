"""Who is asking: API keys in `Authorization: Bearer ofk_…`, their scopes and their tenant.

A key that was checked is remembered for two seconds, so that a caller that polls costs one query, not two; a
key revoked in another process works that much longer at most.
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Request

from api.problem import Problem
from api.ratelimit import RateLimiter
from jobs.access.audit import Actor
from jobs.repository import Repository
from jobs.rows import ApiKey
from jobs.signing.keys import key_hashes
from jobs.signing.secret import Secrets

REMEMBER_SECONDS = 2.0
_MAX_REMEMBERED = 4096
_CHALLENGE = 'Bearer realm="optipfair"'


@dataclass(frozen=True)
class Principal:
    """Who makes this request."""

    key_id: str
    tenant: str
    scopes: frozenset[str]
    subject: str | None = None
    """Whose token the key was issued for, if it was."""

    @property
    def actor(self) -> Actor:
        """How the audit names it."""
        return Actor(self.key_id, self.subject)

    @property
    def admin(self) -> bool:
        """Whether it sees every tenant."""
        return "admin" in self.scopes

    @property
    def sees(self) -> str | None:
        """The tenant that reads are confined to; None for `admin`, which is global."""
        return None if self.admin else self.tenant

    def may(self, scope: str) -> bool:
        """Whether the key has a scope; `admin` includes the others."""
        return self.admin or scope in self.scopes


class Authenticator:
    """Checks keys against the repository.

    Args:
        repository: where the keys' HMACs are.
        secrets: the live secrets, under which keys are stored as HMACs.
        requests: how many requests a key may make.
        failures: how many wrong keys an address may try.
    """

    def __init__(
        self, repository: Repository, secrets: Secrets, *, requests: RateLimiter, failures: RateLimiter
    ) -> None:
        self._repository, self._secrets = repository, secrets
        self.requests, self._failures = requests, failures
        self._known: OrderedDict[bytes, tuple[float, Principal]] = OrderedDict()

    def remembered(self, key: str) -> Principal | None:
        """The principal of a key that was checked a moment ago."""
        found = self._known.get(_digest(key))
        if found is None or found[0] < time.monotonic():
            return None
        return found[1]

    def check(self, key: str, address: str) -> Principal:
        """Look a key up; an address that keeps presenting wrong ones is slowed down, but a right one passes.

        (Else one guesser behind a shared address could lock everybody there out.)

        Raises:
            Problem: 401 for an unknown, revoked or expired key; 429 after many of them.
        """
        hashes = key_hashes(key, self._secrets)
        found = self._repository.find_key(hashes) if hashes else None
        if found is None:
            self.count_guess(address)
            raise unauthorized("This API key is unknown, revoked or expired.", 'error="invalid_token"')
        principal = principal_of(found)
        self._known[_digest(key)] = (time.monotonic() + REMEMBER_SECONDS, principal)
        self._known.move_to_end(_digest(key))
        if len(self._known) > _MAX_REMEMBERED:
            self._known.popitem(last=False)
        return principal

    def count_guess(self, address: str) -> None:
        """Count a wrong key or token of an address; Problem 429 once there were too many."""
        verdict = self._failures.take(address)
        if not verdict.allowed:
            raise self._failures.refusal(verdict)

    def forget(self) -> None:
        """Forget all remembered keys: one was revoked."""
        self._known.clear()


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def principal_of(key: ApiKey) -> Principal:
    """What a stored key stands for."""
    return Principal(key.id, key.tenant, key.scopes, key.subject)


def unauthorized(detail: str, parameter: str = "") -> Problem:
    """401 with a challenge (RFC 6750)."""
    challenge = f"{_CHALLENGE}, {parameter}" if parameter else _CHALLENGE
    return Problem(401, "unauthorized", detail, headers={"WWW-Authenticate": challenge})


def bearer_token(request: Request) -> str | None:
    """The key in the Authorization header, if there is one."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() or None if scheme.lower() == "bearer" else None


async def identify(request: Request, key: str) -> Principal:
    """Check a key that came with this request, from a header or from the dashboard's cookie."""
    services = request.app.state.services
    authenticator: Authenticator = services.authenticator
    address = request.client.host if request.client else "unknown"
    principal = authenticator.remembered(key)
    if principal is None:
        principal = await services.quickly(authenticator.check, key, address)
    request.scope["key_id"] = principal.key_id
    return principal


def require(scope: str | None) -> Callable[..., Coroutine[Any, Any, Principal]]:
    """A dependency that lets a request pass whose key has `scope` (None: any key).

    Raises:
        Problem: 401 without a valid key, 403 without the scope, 429 over the limit.
    """

    async def principal(request: Request) -> Principal:
        key = bearer_token(request)
        if key is None:
            raise unauthorized("Send an API key: Authorization: Bearer ofk_…")
        found = await identify(request, key)
        limiter: RateLimiter = request.app.state.services.authenticator.requests
        verdict = limiter.take(found.key_id)
        if not verdict.allowed:
            raise limiter.refusal(verdict)
        request.scope["extra_headers"] = limiter.headers(verdict)
        if scope is not None and not found.may(scope):
            detail = f"This API key lacks the scope {scope}."
            challenge = f'{_CHALLENGE}, error="insufficient_scope", scope="{scope}"'
            raise Problem(403, "scope_missing", detail, headers={"WWW-Authenticate": challenge})
        return found

    return principal


Reader = Annotated[Principal, Depends(require("jobs:read"))]
Writer = Annotated[Principal, Depends(require("jobs:write"))]
Admin = Annotated[Principal, Depends(require("admin"))]
AnyKey = Annotated[Principal, Depends(require(None))]
