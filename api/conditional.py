"""Request headers that make an answer conditional: If-None-Match and Prefer."""

from __future__ import annotations

import re

MAX_WAIT_SECONDS = 30
_WAIT = re.compile(r"(?:^|[,;\s])wait\s*=\s*\"?(\d{1,4})\"?\s*(?:$|[,;])", re.IGNORECASE)
_TAG = re.compile(r'(?:W/)?"([^"]*)"')


def none_match(header: str | None, etag: str) -> bool:
    """Whether If-None-Match names this entity tag (weak comparison, RFC 9110 section 13.1.2)."""
    if header is None:
        return False
    if header.strip() == "*":
        return True
    return etag.strip('"') in _TAG.findall(header)


def prefer_wait(header: str | None) -> int:
    """Seconds that the caller is ready to wait (RFC 7240), at most 30; 0 when it does not say."""
    found = _WAIT.search(header or "")
    return min(int(found.group(1)), MAX_WAIT_SECONDS) if found else 0
