"""A byte range is read as RFC 9110 says."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from api.downloads.ranges import ByteRange, RangeNotSatisfiableError, parse_range


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("bytes=0-0", ByteRange(0, 0)),
        ("bytes=2-", ByteRange(2, 9)),
        ("bytes=-3", ByteRange(7, 9)),
        ("bytes=-300", ByteRange(0, 9)),
        ("BYTES= 5-99 ", ByteRange(5, 9)),
    ],
)
def test_a_range_that_exists_is_given(header: str, expected: ByteRange) -> None:
    assert parse_range(header, 10) == expected


@pytest.mark.parametrize(
    "header",
    [None, "lines=1-2", "bytes", "bytes=", "bytes=-", "bytes=3-1", "bytes=a-b", "bytes=1", "bytes=0-1,4-5"],
)
def test_what_is_not_one_range_is_ignored(header: str | None) -> None:
    assert parse_range(header, 10) is None


@pytest.mark.parametrize("header", ["bytes=10-", "bytes=10-12", "bytes=-0"])
def test_bytes_that_are_not_there_are_refused(header: str) -> None:
    with pytest.raises(RangeNotSatisfiableError):
        parse_range(header, 10)


@pytest.mark.parametrize("header", ["bytes=0-", "bytes=-1"])
def test_no_range_of_an_empty_file_exists(header: str) -> None:
    with pytest.raises(RangeNotSatisfiableError):
        parse_range(header, 0)


@given(st.from_regex(r"\s*\d{0,4}-\d{0,4}\s*", fullmatch=True) | st.text(max_size=40), st.integers(0, 1000))
def test_any_header_gives_a_range_within_the_file(header: str, size: int) -> None:
    try:
        found = parse_range("bytes=" + header, size)
    except RangeNotSatisfiableError:
        return
    assert found is None or 0 <= found.first <= found.last < size
