"""How many requests a caller may make: a token bucket per key, and one per address for failed log-ins.

The buckets live in this process. With several API processes each allows its own share, which is enough to
keep one caller from starving the others; a strict global quota would cost a round trip per request.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from dataclasses import dataclass

from api.problem import Problem

_MAX_BUCKETS = 10_000


@dataclass(slots=True)
class _Bucket:
    tokens: float
    seen: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the bucket says about one request, in the terms of the RateLimit header fields."""

    allowed: bool
    remaining: int
    reset_seconds: int


class RateLimiter:
    """Token buckets: `limit` requests in `window` seconds, refilled evenly.

    Args:
        limit: requests per window; also the size of a burst.
        window: seconds.
    """

    def __init__(self, limit: int, window: int = 60) -> None:
        self.limit, self.window = limit, window
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    def take(self, key: str, *, now: float | None = None) -> Verdict:
        """Take one token from the bucket of `key`; `now` is monotonic seconds."""
        moment = time.monotonic() if now is None else now
        bucket = self._bucket(key, moment)
        rate = self.limit / self.window
        bucket.tokens = min(self.limit, bucket.tokens + (moment - bucket.seen) * rate)
        bucket.seen = moment
        allowed = bucket.tokens >= 1
        if allowed:
            bucket.tokens -= 1
        missing = max(0.0, 1 - bucket.tokens)
        return Verdict(allowed, max(0, int(bucket.tokens)), math.ceil(missing / rate))

    def _bucket(self, key: str, moment: float) -> _Bucket:
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = _Bucket(self.limit, moment)
            if len(self._buckets) > _MAX_BUCKETS:  # a flood of addresses must not eat the memory
                self._buckets.popitem(last=False)
        else:
            self._buckets.move_to_end(key)
        return bucket

    def headers(self, verdict: Verdict) -> dict[str, str]:
        """RateLimit and RateLimit-Policy as the IETF draft writes them (structured fields)."""
        return {
            "RateLimit-Policy": f'"default";q={self.limit};w={self.window}',
            "RateLimit": f'"default";r={verdict.remaining};t={verdict.reset_seconds}',
        }

    def refusal(self, verdict: Verdict) -> Problem:
        """The 429 for a request that the bucket did not allow."""
        wait = max(1, verdict.reset_seconds)
        headers = {"Retry-After": str(wait), **self.headers(verdict)}
        detail = f"More than {self.limit} requests in {self.window} seconds; try again in {wait} s."
        return Problem(429, "rate_limited", detail, headers=headers)
