"""Which process of pytest-xdist runs which tests: a file stays whole, and what takes long begins first.

A file's fixtures of module scope (a running service, a model) are then made once and not once a process.
Files that share more than that name it with ``pytest.mark.xdist_group``. For ``--dist loadgroup``.
"""

from __future__ import annotations

from collections import defaultdict

import pytest
from xdist.scheduler import LoadGroupScheduling

#: About how many seconds a test takes that has these marks; the first that fit count.
SECONDS = (({"server", "slow"}, 20.0), ({"slow"}, 4.0), ({"browser"}, 4.0), (set[str](), 0.3))


class WholeFiles(LoadGroupScheduling):
    """Tests of one group go to one process, and those without a group as if their file were one."""

    def _split_scope(self, nodeid: str) -> str:
        group = super()._split_scope(nodeid)
        return group if group != nodeid else nodeid.partition("::")[0]


def longest_first(items: list[pytest.Item]) -> list[pytest.Item]:
    """The tests, those of a group side by side, the groups by what their marks let expect."""
    units: defaultdict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        units[_unit(item)].append(item)
    ordered = sorted(units.values(), key=lambda unit: -sum(map(_seconds, unit)))
    return [item for unit in ordered for item in unit]


def _unit(item: pytest.Item) -> str:
    group = item.get_closest_marker("xdist_group")
    return str(group.args[0]) if group is not None else item.nodeid.partition("::")[0]


def _seconds(item: pytest.Item) -> float:
    marks = {mark.name for mark in item.iter_markers()}
    return next(seconds for needed, seconds in SECONDS if needed <= marks)
