"""The words of a refusal: what there is instead of what was named."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

#: How many names a refusal lists; the lists of the API have all.
SHOWN = 12
SOON = "one that was copied just now is seen within a few seconds"


def instead(name: str, there: Iterable[str], what: str, where: str) -> str:
    """What there is of a kind (`what`, in the plural), the nearest first, and where all of it is listed."""
    names = sorted(set(there))
    if not names:
        return f"there are no {what} yet: copy one into the workers' {where} folder; {SOON}"
    near = get_close_matches(name, names, 1)
    listed = [*near, *(other for other in names if other not in near)]
    more = f" and {len(names) - SHOWN} more (GET /v1/{what_path(where)})" if len(names) > SHOWN else ""
    told = f"there are {', '.join(listed[:SHOWN])}{more}; {SOON}"
    return f"did you mean {near[0]!r}? {told}" if near else told


def what_path(where: str) -> str:
    """The path that lists the files of a folder."""
    return "calibrations" if where == "calibration" else where
