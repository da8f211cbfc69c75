"""Byte ranges are read as RFC 9110 says."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from api.downloads.ranges import MAX_RANGES, ByteRange, RangeNotSatisfiableError, parse_ranges


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("bytes=0-0", [ByteRange(0, 0)]),
        ("bytes=2-", [ByteRange(2, 9)]),
        ("bytes=-3", [ByteRange(7, 9)]),
        ("bytes=-300", [ByteRange(0, 9)]),
        ("bytes=5-99", [ByteRange(5, 9)]),
        ("BYTES=0-1, 4-5", [ByteRange(0, 1), ByteRange(4, 5)]),
        ("bytes=8-9,20-30", [ByteRange(8, 9)]),
    ],
)
def test_ranges_that_exist_are_given(header: str, expected: list[ByteRange]) -> None:
    assert parse_ranges(header, 10) == expected


@pytest.mark.parametrize(
    "header", [None, "lines=1-2", "bytes", "bytes=", "bytes=-", "bytes=3-1", "bytes=a-b", "bytes=1"]
)
def test_what_is_not_a_range_is_ignored(header: str | None) -> None:
    assert parse_ranges(header, 10) is None


@pytest.mark.parametrize("header", ["bytes=10-", "bytes=10-12,99-100", "bytes=-0", "bytes=0-5,3-8"])
def test_nothing_there_or_overlapping_is_refused(header: str) -> None:
    with pytest.raises(RangeNotSatisfiableError):
        parse_ranges(header, 10)


def test_too_many_ranges_are_refused() -> None:
    many = ",".join(f"{2 * i}-{2 * i}" for i in range(MAX_RANGES + 1))
    with pytest.raises(RangeNotSatisfiableError):
        parse_ranges(f"bytes={many}", 1000)


def test_no_range_of_an_empty_file_exists() -> None:
    with pytest.raises(RangeNotSatisfiableError):
        parse_ranges("bytes=0-", 0)


@given(st.text(max_size=40), st.integers(0, 1000))
def test_any_header_gives_ranges_within_the_file(header: str, size: int) -> None:
    try:
        found = parse_ranges("bytes=" + header, size)
    except RangeNotSatisfiableError:
        return
    assert all(0 <= r.first <= r.last < size for r in found or [])
