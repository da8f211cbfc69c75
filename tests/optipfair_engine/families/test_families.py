"""One abstract suite for every family: see ``checks`` for what is claimed."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.optipfair_engine.families.checks import CHECKS
from tests.optipfair_engine.families.suite import RELOAD, Suite, render, support_page
from tests.optipfair_engine.families.zoo import FAMILIES, Family

NEVER_REFUSED = ("MLP neurons", "neurons of chosen layers", "layers", "layer importance")


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Suite:
    return Suite(tmp_path_factory.mktemp("families"))


@pytest.mark.parametrize("capability", CHECKS)
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_family(suite: Suite, family: Family, capability: str) -> None:
    outcome = suite.outcome(family, capability)
    if family.kind in ("glu", "fused", "plain"):
        assert not (outcome.refused and capability in NEVER_REFUSED), outcome.reason


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_reloads_in_a_new_process(suite: Suite, family: Family) -> None:
    suite.reload(family)


@pytest.mark.slow
def test_the_support_page_is_what_the_suite_finds(suite: Suite) -> None:
    expected = "run python -m tests.optipfair_engine.families.table"
    assert support_page().read_text(encoding="utf-8") == render(suite), expected


@pytest.mark.slow
def test_refusals_are_counted_apart(suite: Suite) -> None:
    counts: Counter[str] = Counter()
    for family in FAMILIES:
        for capability in CHECKS:
            counts["refused" if suite.outcome(family, capability).refused else "passed"] += 1
        suite.reload(family)
        counts["reloaded"] += 1
    print(f"\n{counts['passed']} claims hold, {counts['refused']} are refused")
    print(f"{RELOAD}: {counts['reloaded']} families")
    assert counts["passed"] > counts["refused"]
