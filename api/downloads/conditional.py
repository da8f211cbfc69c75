"""Request headers that make an answer conditional: If-None-Match and Prefer."""

from __future__ import annotations

import re

from starlette.datastructures import Headers

MAX_WAIT_SECONDS = 30
"""How long a request for a job's next change is held."""
MAX_END_SECONDS = 60
"""How long a request that wants a job's end is held."""
# possessive: a header of 60 kB of zeros must not be tried in every division
_WAIT = re.compile(r"(?:^|[,;\s])wait\s*=\s*\"?0*+(\d{0,9}+)\d*+\"?\s*(?:$|[,;])", re.IGNORECASE)
_TAG = re.compile(r'(?:W/)?"([^"]*)"')


def field(headers: Headers, name: str) -> str | None:
    """A list-valued header, its lines joined (RFC 9110 section 5.3); None without one."""
    return ", ".join(lines) if (lines := headers.getlist(name)) else None


def none_match(header: str | None, etag: str) -> bool:
    """Whether If-None-Match names this entity tag (weak comparison, RFC 9110 section 13.1.2)."""
    if header is None:
        return False
    if header.strip() == "*":
        return True
    return etag.strip('"') in _TAG.findall(header)


def prefer_wait(header: str | None, longest: int = MAX_WAIT_SECONDS) -> int:
    """Seconds that the caller is ready to wait (RFC 7240), at most `longest`; 0 when it does not say."""
    found = _WAIT.search(header or "")
    return min(int(found.group(1) or 0), longest) if found else 0
