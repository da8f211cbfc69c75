"""From a CI system's token to a key of this service (RFC 8693).

The rules are looked up by the issuer that the token claims; only then are keys fetched, so that nobody can
make this service call an address that no rule names. Only RS256 and ES256 are accepted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

from pydantic_core import from_json
from starlette.concurrency import run_in_threadpool

from api.context import Services
from api.tokens.issuers import IssuerAwayError, IssuerFaultError, Issuers
from jobs.access.audit import Actor
from jobs.access.trust import TrustRule, fits
from jobs.errors import NotFoundError
from jobs.signing.keys import generate_key

GRANT = "urn:ietf:params:oauth:grant-type:token-exchange"
JWT = "urn:ietf:params:oauth:token-type:jwt"
ACCESS_TOKEN = "urn:ietf:params:oauth:token-type:access_token"  # noqa: S105 - a name of the protocol
ALGORITHMS = ["RS256", "ES256"]
MAX_SECONDS = 3600
MAX_TOKEN_CHARACTERS = 16_384
SKEW_SECONDS = 60
"""How far ahead an issuer's clock may be; the end of a token is never stretched."""


class RefusedError(Exception):
    """No key; `error` is a word of RFC 6749, `status` what goes with it."""

    def __init__(self, error: str, description: str, status: int = 400) -> None:
        super().__init__(description)
        self.error, self.description, self.status = error, description, status


@dataclass(frozen=True)
class Wish:
    """A well-formed request."""

    token: str
    audience: str | None
    scopes: frozenset[str] | None


@dataclass(frozen=True)
class Issued:
    """The key and how long it works, in seconds."""

    plain: str
    seconds: int
    scopes: list[str]


def parse_wish(content_type: str, body: bytes) -> Wish:
    """The form of a request.

    Raises:
        RefusedError: `invalid_request`, `unsupported_grant_type`, `invalid_target`.
    """
    if content_type.partition(";")[0].strip().lower() != "application/x-www-form-urlencoded":
        raise RefusedError("invalid_request", "send the form as application/x-www-form-urlencoded")
    form = _form(body)
    grant = form.get("grant_type")
    if grant is None:
        raise RefusedError("invalid_request", "grant_type is missing")
    if grant != GRANT:
        raise RefusedError("unsupported_grant_type", f"grant_type must be {GRANT}")
    if form.get("subject_token_type") != JWT:
        raise RefusedError("invalid_request", f"subject_token_type must be {JWT}")
    if form.get("requested_token_type", ACCESS_TOKEN) != ACCESS_TOKEN:
        raise RefusedError("invalid_request", f"requested_token_type can only be {ACCESS_TOKEN}")
    if "actor_token" in form or "actor_token_type" in form:
        raise RefusedError("invalid_request", "nobody can act for another here: leave actor_token away")
    if "resource" in form:
        raise RefusedError("invalid_target", "leave resource away: the key is for this service")
    token = form.get("subject_token", "")
    if not token or len(token) > MAX_TOKEN_CHARACTERS:
        raise RefusedError("invalid_request", "subject_token is missing, or too long to be one")
    scope = form.get("scope")
    return Wish(token, form.get("audience"), None if scope is None else frozenset(scope.split()))


def _form(body: bytes) -> dict[str, str]:
    try:
        pairs = parse_qsl(
            body.decode("ascii"), keep_blank_values=True, strict_parsing=bool(body), max_num_fields=32
        )
    except ValueError:
        raise RefusedError("invalid_request", "the body is not a form") from None
    form = dict(pairs)
    if len(form) < len(pairs):
        raise RefusedError("invalid_request", "a parameter is given twice")
    return {name: value for name, value in form.items() if value}  # empty counts as left out (RFC 6749)


async def exchange(services: Services, issuers: Issuers, wish: Wish, request_id: str) -> Issued:
    """A new key for a token that fits a rule.

    Raises:
        RefusedError: `invalid_grant` for a token that is not let in, `invalid_scope`, and
            `temporarily_unavailable` (503) while the issuer does not answer.
    """
    from joserfc import jwt
    from joserfc.errors import JoseError

    issuer, key_id = unverified(wish.token)
    rules = await run_in_threadpool(services.repository.list_trust, issuer=issuer)
    rules = [rule for rule in rules if wish.audience in (None, rule.audience)]
    if not rules:
        raise _not_let_in()
    try:
        key = await issuers.key(issuer, key_id)
        claims: dict[str, Any] = jwt.decode(wish.token, key, algorithms=ALGORITHMS).claims
    except IssuerAwayError as error:
        raise RefusedError("temporarily_unavailable", f"{error}", 503) from None
    except IssuerFaultError as error:
        raise RefusedError("invalid_grant", f"{error}") from None
    except (JoseError, ValueError, TypeError):
        raise RefusedError("invalid_grant", "the token's signature is not its issuer's") from None
    now = await run_in_threadpool(services.repository.now)
    seconds = min(lifetime(claims, issuer, now // 1000), MAX_SECONDS)
    rule = chosen(rules, claims)
    scopes = _granted(rule, wish.scopes)
    return await run_in_threadpool(_issue, services, rule, scopes, claims, now, seconds, request_id)


def unverified(token: str) -> tuple[str, str | None]:
    """Issuer and key id that a token claims, to find the key by which it is then verified."""
    from joserfc import jws  # loaded when the first token comes, see `issuers`
    from joserfc.errors import JoseError

    try:
        parts = jws.extract_compact(token.encode("ascii"))
        claims = from_json(parts.payload, allow_inf_nan=False)
        header = parts.headers()
    except (JoseError, ValueError, TypeError):
        raise RefusedError("invalid_grant", "the subject_token is not a signed JWT") from None
    if header.get("alg") not in ALGORITHMS:
        raise RefusedError("invalid_grant", "the token must be signed with RS256 or ES256")
    issuer = claims.get("iss") if isinstance(claims, dict) else None
    key_id = header.get("kid")
    if not isinstance(issuer, str) or not (key_id is None or isinstance(key_id, str)):
        raise RefusedError("invalid_grant", "the token names no issuer")
    return issuer, key_id


def lifetime(claims: Mapping[str, Any], issuer: str, now: int) -> int:
    """Seconds that the token still works."""
    times = {name: claims.get(name) for name in ("exp", "nbf", "iat")}
    if any(type(value) not in (int, float, type(None)) for value in times.values()):
        raise RefusedError("invalid_grant", "the token's times are not numbers")
    ends, begins = times["exp"], max(times["nbf"] or 0, times["iat"] or 0)
    if claims.get("iss") != issuer or ends is None:
        raise RefusedError("invalid_grant", "the token has no end")
    if ends - now < 1:
        raise RefusedError("invalid_grant", "the token has expired")
    if begins > now + SKEW_SECONDS:
        raise RefusedError("invalid_grant", "the token is not valid yet")
    return int(min(ends - now, MAX_SECONDS))


def chosen(rules: Sequence[TrustRule], claims: Mapping[str, Any]) -> TrustRule:
    """The newest rule that a verified token fits."""
    given = claims.get("aud")
    audiences = given if isinstance(given, list) else [given]
    for rule in rules:
        if rule.audience in audiences and fits(rule, claims):
            return rule
    raise _not_let_in()


def _not_let_in() -> RefusedError:
    """One text for every reason, so that rules can't be felt out."""
    return RefusedError("invalid_grant", "no trust rule lets in this issuer with this audience and claims")


def _granted(rule: TrustRule, wanted: frozenset[str] | None) -> list[str]:
    if wanted is not None and not wanted <= rule.scopes:
        raise RefusedError("invalid_scope", f"the trust rule grants {' '.join(sorted(rule.scopes))}")
    return sorted(wanted or rule.scopes)


def _issue(
    services: Services,
    rule: TrustRule,
    scopes: list[str],
    claims: Mapping[str, Any],
    now: int,
    seconds: int,
    request_id: str,
) -> Issued:
    fresh = generate_key(services.secrets)
    subject = "".join(c for c in str(claims.get("sub") or "") if c.isprintable())[:512]
    subject = subject or f"a token of {rule.issuer}"
    repository = services.repository.on_behalf(Actor(subject=subject), request_id)
    try:
        repository.issue_token(
            rule,
            key_hash=fresh.hash,
            hint=fresh.hint,
            scopes=scopes,
            subject=subject,
            expires_at=now + seconds * 1000,
        )
    except NotFoundError:
        raise _not_let_in() from None
    return Issued(fresh.plain, seconds, scopes)
