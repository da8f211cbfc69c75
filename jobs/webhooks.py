"""What a webhook message says, when it is tried again, and which URLs are acceptable at all."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from urllib.parse import urlsplit

from jobs.errors import InvalidError
from jobs.rows import Job, to_json
from jobs.states import TERMINAL
from jobs.times import rfc3339

EVENT_TYPES = tuple(sorted(f"job.{state.value}" for state in TERMINAL))
BACKOFF_SECONDS = (5, 30, 120, 600, 3600, 6 * 3600, 24 * 3600)
"""The wait after the first, second … failed try; after the last the delivery has failed."""


def wants(events: Sequence[str], event_type: str) -> bool:
    """Whether a webhook with this list of events (empty: all) is told of `event_type`."""
    return not events or event_type in events


def job_payload(job: Job, event_type: str) -> str:
    """The JSON of a message, in the frame of Standard Webhooks: type, timestamp, data."""
    ended = job.finished_at or job.created_at
    data = {
        "id": job.id,
        "kind": job.kind,
        "state": job.state.value,
        "verdict": job.verdict,
        "labels": job.labels,
        "attempt": job.attempt,
        "error": None if job.error is None else {"code": job.error.code, "message": job.error.message},
        "created_at": rfc3339(job.created_at),
        "finished_at": rfc3339(ended),
    }
    return to_json({"type": event_type, "timestamp": rfc3339(ended), "data": data})


_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
_SET_ASIDE = (
    ipaddress.IPv6Network("2001::/23"),  # protocols: Teredo, benchmarks, ORCHID
    ipaddress.IPv6Network("2001:db8::/32"),  # documentation
    ipaddress.IPv6Network("2002::/16"),  # 6to4, which embeds an IPv4 address
    ipaddress.IPv6Network("3fff::/20"),  # documentation
)


def check_webhook_url(url: str, *, allow_loopback: bool) -> None:
    """Raise InvalidError (`webhook_url_invalid`) for a URL that is refused before any name is resolved."""
    check_url(url, what="webhook URL", code="webhook_url_invalid", allow_loopback=allow_loopback)


def check_url(url: str, *, what: str, code: str, allow_loopback: bool) -> None:
    """Raise InvalidError with `code` for a URL that this service shall not call; `what` is its name.

    Only https, no user info, no literal address that is not globally routable (multicast included).
    With `allow_loopback` (development) http and loopback are let through. Names are judged again when
    they are resolved, when the URL is called.
    """
    reason = _fault(url, allow_loopback=allow_loopback)
    if reason is not None:
        raise InvalidError(f"the {what} {reason}", code=code)


def _fault(url: str, *, allow_loopback: bool) -> str | None:
    if not url.isascii() or not url.isprintable() or " " in url:
        return "holds a character that must be percent-encoded"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        return "is not a URL"
    if not host or parts.username is not None or parts.password is not None or port == 0:
        return "needs a host, and no user name or password"
    loopback = _is_loopback(host)
    address = _literal_address(host)
    outside = is_public(address) if address is not None else not loopback
    if not outside and not (allow_loopback and loopback):
        return "does not point to a globally routable address"
    if parts.scheme != "https" and not (parts.scheme == "http" and loopback and allow_loopback):
        return "must use https"
    return None


def _is_loopback(host: str) -> bool:
    address = _literal_address(host)
    named = host == "localhost" or host.endswith(".localhost")
    return named or (address is not None and address.is_loopback)


def is_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Whether an address is globally routable unicast.

    Of IPv6 that is what lies in the one block from which global addresses are given out, but for the parts of
    it that are set aside: what is reserved today may be routed somewhere inside tomorrow.
    """
    if isinstance(address, ipaddress.IPv6Address):
        if address in _NAT64:  # reaches any IPv4 address
            return is_public(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
        if address not in _GLOBAL_UNICAST or any(address in block for block in _SET_ASIDE):
            return False
    return address.is_global and not address.is_multicast


def _literal_address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return _legacy_address(host)


def _legacy_address(host: str) -> ipaddress.IPv4Address | None:
    """Addresses as inet_aton reads them (`127.1`, `0x7f000001`, `2130706433`): resolvers accept them."""
    parts = host.rstrip(".").split(".")
    if not 1 <= len(parts) <= 4:
        return None
    try:
        numbers = [
            int(part, 16 if part.lower().startswith("0x") else 8 if part[:1] == "0" else 10) for part in parts
        ]
    except ValueError:
        return None
    *heads, tail = numbers
    if any(not 0 <= head < 256 for head in heads) or not 0 <= tail < 256 ** (5 - len(numbers)):
        return None
    value = sum(head << (24 - 8 * i) for i, head in enumerate(heads)) + tail
    return ipaddress.IPv4Address(value)
