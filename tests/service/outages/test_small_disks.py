"""Each disk of a service in turn is full for some seconds: at worst a job fails with `storage_full`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.service.outages.disks import NeedsRootError, SmallDisks, small_disks
from tests.service.outages.scenes import suffer

pytestmark = [pytest.mark.outage, pytest.mark.server, pytest.mark.slow, pytest.mark.timeout(900)]

LENGTH = 5.0
CASES = [
    ("staging", "staging"),
    ("scratch", "claim"),
    ("database", "commit"),
    ("log", "claim"),
    ("broker", "commit"),
]


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallDisks]:
    try:
        with small_disks(tmp_path_factory.mktemp("disks")) as made:
            yield made
    except NeedsRootError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize(("disk", "moment"), CASES)
def test_a_full_disk(there: SmallDisks, disk: str, moment: str) -> None:
    outcome = suffer(there, "disk", disk, moment, LENGTH)
    assert outcome.wrong(there) == [], outcome
