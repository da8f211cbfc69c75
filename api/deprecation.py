"""An answer announces that its request used what is to go: `Deprecation` (RFC 9745), `Sunset` (RFC 8594)."""

from __future__ import annotations

from email.utils import format_datetime

from jobs.specs import AnyRequest
from jobs.specs.deprecated import deprecations_in


def deprecation_headers(request: AnyRequest) -> dict[str, str]:
    """Since when the oldest deprecated field of a request is deprecated, and when the first of them goes."""
    found = [item for _, item in deprecations_in(request.kind, request.spec)]
    if not found:
        return {}
    since, sunset = min(item.since for item in found), min(item.sunset for item in found)
    return {
        "Deprecation": f"@{int(since.timestamp())}",  # a date of RFC 9651, section 3.3.7
        "Sunset": format_datetime(sunset, usegmt=True),
    }
