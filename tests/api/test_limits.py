"""Token buckets, JSON depth and conditional headers, without an app."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, strategies as st
from starlette.datastructures import Headers

from api.body import MAX_JSON_DEPTH, json_depth
from api.downloads.conditional import field, none_match, prefer_wait
from api.middleware import MAX_BODY_BYTES, redacted
from api.ratelimit import RateLimiter


def test_a_burst_is_let_through_and_then_refilled_evenly() -> None:
    limiter = RateLimiter(limit=60, window=60)
    assert all(limiter.take("a", now=0.0).allowed for _ in range(60))
    refused = limiter.take("a", now=0.0)
    assert (refused.allowed, refused.remaining, refused.reset_seconds) == (False, 0, 1)
    assert limiter.take("a", now=1.0).allowed
    assert not limiter.take("a", now=1.0).allowed


def test_callers_have_buckets_of_their_own() -> None:
    limiter = RateLimiter(limit=1, window=60)
    assert limiter.take("a", now=0.0).allowed
    assert limiter.take("b", now=0.0).allowed
    assert not limiter.take("a", now=0.0).allowed


def test_a_refusal_says_when_to_come_back() -> None:
    limiter = RateLimiter(limit=1, window=60)
    limiter.take("a", now=0.0)
    problem = limiter.refusal(limiter.take("a", now=0.0))
    assert problem.status == 429
    assert problem.headers["Retry-After"] == "60"
    assert problem.headers["RateLimit"] == '"default";r=0;t=60'
    assert problem.headers["RateLimit-Policy"] == '"default";q=1;w=60'


def _depth(value: object) -> int:
    if isinstance(value, dict):
        return 1 + max((_depth(item) for item in value.values()), default=0)
    if isinstance(value, list):
        return 1 + max((_depth(item) for item in value), default=0)
    return 0


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=12,
)


@given(JSON)
def test_depth_counts_brackets_but_not_those_in_strings(value: object) -> None:
    assert json_depth(json.dumps(value).encode()) == _depth(value)


def test_counting_stops_above_the_limit() -> None:
    assert json_depth(b"[" * 100_000) == MAX_JSON_DEPTH + 1


@pytest.mark.timeout(20)
@pytest.mark.parametrize("unit", [b'\\"', b'"\\', b"\\", b'"', b'["\\"', b'\\"]['])
def test_a_body_of_quotes_and_backslashes_takes_linear_time(unit: bytes) -> None:
    """With the pattern tried again from every quote of an unterminated string, 1 MB took an hour."""
    body = b'["' + unit * (MAX_BODY_BYTES // len(unit))
    assert json_depth(body) in (1, 2)


@pytest.mark.parametrize(
    ("header", "matches"),
    [
        (None, False),
        ("*", True),
        ('"7"', True),
        ('W/"7"', True),
        ('"6", "7"', True),
        ('"77"', False),
        ("7", False),
    ],
)
def test_if_none_match_compares_weakly(header: str | None, matches: bool) -> None:
    assert none_match(header, '"7"') is matches


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, 0),
        ("wait=5", 5),
        ("respond-async, wait=10", 10),
        ("wait=99", 30),
        ("wait=99999", 30),
        ("wait=" + "9" * 5000, 30),
        ("wait=" + "0" * 60_000 + "7", 7),
        ("wait=" + "0" * 60_000 + "x", 0),
        ("wait=", 0),
        ('Wait="3"', 3),
        ("await=4", 0),
        ("wait=-1", 0),
    ],
)
def test_prefer_wait_is_bounded(header: str | None, seconds: int) -> None:
    assert prefer_wait(header) == seconds


def test_lines_of_one_header_are_one_list() -> None:
    lines = Headers(raw=[(b"prefer", b"respond-async"), (b"x", b"y"), (b"prefer", b"wait=4")])
    assert prefer_wait(field(lines, "prefer")) == 4
    assert field(lines, "if-none-match") is None


def test_tokens_of_links_stay_out_of_logs() -> None:
    assert (
        redacted("/v1/download/abc.def-123/model.safetensors") == "/v1/download/[redacted]/model.safetensors"
    )
    assert redacted("/v1/jobs/x") == "/v1/jobs/x"
