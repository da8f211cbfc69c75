"""Neighbours are killed, frozen and cut off for some seconds at chosen moments of a job: it all goes on.

Of neighbours × faults × moments these are the pairs in which a call of the worker is under way to just that
neighbour; `python -m benchmarks.outages.faults` runs all of them, and longer. A broker killed at a job's end
is in `test_broker_away`.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.service.outages.neighbours import Neighbourhood, neighbourhood
from tests.service.outages.scenes import suffer

pytestmark = [pytest.mark.outage, pytest.mark.server, pytest.mark.slow, pytest.mark.timeout(900)]

LENGTH = 3.0
CASES = [
    ("broker", "half-open", "acknowledgement"),
    ("broker", "refuse", "claim"),
    ("postgres", "stall", "engine"),
    ("postgres", "half-open", "commit"),
    ("postgres", "killed", "commit"),
    ("postgres", "slow", "commit"),
    ("s3", "half-open", "publication"),
    ("s3", "slow", "publication"),
]


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Neighbourhood]:
    with neighbourhood(tmp_path_factory.mktemp("neighbours")) as made:
        yield made


@pytest.mark.parametrize(("neighbour", "fault", "moment"), CASES)
def test_a_fault_of_a_neighbour(there: Neighbourhood, neighbour: str, fault: str, moment: str) -> None:
    outcome = suffer(there, neighbour, fault, moment, LENGTH)
    assert outcome.wrong(there) == [], outcome
