"""Trust rules: whose OpenID Connect tokens are exchanged for a key, and whether a token fits a rule.

A rule names an issuer, an audience and claims, each with one value or several; all are compared exactly. A
number in a rule fits the same number written as a string, because issuers differ in how they write ids.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from jobs.errors import InvalidError
from jobs.webhooks import check_url

Value = str | int | bool
Claims = Mapping[str, Value | Sequence[Value]]
GITHUB_HOST = "token.actions.githubusercontent.com"
GITHUB_SERVER_PATH = "/_services/token"
"""What the issuer of a GitHub Enterprise Server ends in."""
DANGEROUS_EVENT = "pull_request_target"
"""GitHub's event that runs with the rights of the repository on behalf of whoever opened a pull request."""
_EVENT_CLAIMS = ("event_name", "workflow")


@dataclass(frozen=True)
class TrustRule:
    """Who holds a token of `issuer` for `audience` with these claims gets `scopes` in `tenant`."""

    id: str
    tenant: str
    issuer: str
    audience: str
    claims: dict[str, Any]
    scopes: frozenset[str]
    created_at: int


def check_rule(issuer: str, claims: Claims, *, allow_loopback: bool) -> None:
    """Refuse a rule that would let more in than its author can mean.

    Raises:
        InvalidError: `issuer_invalid` for an address that tokens' keys can't be fetched from;
            `claims_too_wide` for no claims, or for GitHub without a numeric repository_id.
    """
    check_url(issuer, what="issuer", code="issuer_invalid", allow_loopback=allow_loopback)
    if any(mark in issuer for mark in "?#") or issuer != issuer.rstrip("/"):
        message = "the issuer has no query, no fragment and no slash at its end: write it as the `iss` claim"
        raise InvalidError(message, code="issuer_invalid", location=("issuer",))
    if not claims:
        message = "name at least one claim: without one, everybody whom the issuer knows would be let in"
        raise InvalidError(message, code="claims_too_wide", location=("claims",))
    if _is_github(issuer):
        _check_repository_id(claims)


def _is_github(issuer: str) -> bool:
    parts = urlsplit(issuer)
    return (parts.hostname or "").rstrip(".") == GITHUB_HOST or parts.path.endswith(GITHUB_SERVER_PATH)


def _check_repository_id(claims: Claims) -> None:
    """Names can be given up and taken by others; the number of a repository stays its own."""
    ids = _values(claims.get("repository_id", ()))
    if not ids or not all(_is_number(value) for value in ids):
        message = (
            "rules for GitHub pin repository_id, a number: names can be taken over by others "
            "(gh api repos/OWNER/NAME --jq .id prints it)"
        )
        raise InvalidError(message, code="claims_too_wide", location=("claims", "repository_id"))


def _is_number(value: Value) -> bool:
    text = "" if isinstance(value, bool) else str(value)
    return text.isascii() and text.isdigit()


def fits(rule: TrustRule, claims: Mapping[str, Any]) -> bool:
    """Whether a token's claims are those of the rule; issuer and audience are not looked at here."""
    if any(_names_event(claims, name) and not _names_event(rule.claims, name) for name in _EVENT_CLAIMS):
        return False
    return all(_is_one_of(claims.get(name), _values(wanted)) for name, wanted in rule.claims.items())


def _names_event(claims: Mapping[str, Any], name: str) -> bool:
    return DANGEROUS_EVENT in (str(value).strip().lower() for value in _values(claims.get(name, ())))


def _values(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else (value,)


def _is_one_of(found: Any, wanted: Sequence[Any]) -> bool:
    return isinstance(found, str | int) and any(_same(found, value) for value in wanted)


def _same(found: str | int, wanted: Value) -> bool:
    if isinstance(found, bool) or isinstance(wanted, bool):
        return found is wanted
    return str(found) == str(wanted)
