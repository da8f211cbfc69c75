"""One process at a time, and one that died does not keep its turn."""

from __future__ import annotations

from sqlalchemy import Engine, update

from jobs.database import writing
from jobs.repository import Repository
from jobs.tables import duties


def test_one_at_a_time_and_on_from_where_it_stopped(repository: Repository) -> None:
    mine = repository.take_duty("orphans", lease_seconds=60)
    assert mine is not None
    assert mine.position is None
    assert repository.take_duty("orphans", lease_seconds=60) is None
    assert repository.take_duty("reconcile", lease_seconds=60) is not None
    repository.end_duty(mine, again_in_seconds=0, position="0199")
    again = repository.take_duty("orphans", lease_seconds=60)
    assert again is not None
    assert again.position == "0199"
    repository.end_duty(again, again_in_seconds=60)
    assert repository.take_duty("orphans", lease_seconds=60) is None  # not due


def test_a_turn_that_is_not_kept_goes_to_another(repository: Repository, engine: Engine) -> None:
    dead = repository.take_duty("orphans", lease_seconds=60)
    assert dead is not None
    assert repository.keep_duty(dead, "01", lease_seconds=60)
    with writing(engine) as connection:
        connection.execute(update(duties).values(taken_until=0))
    heir = repository.take_duty("orphans", lease_seconds=60)
    assert heir is not None
    assert heir.position == "01"
    assert not repository.keep_duty(dead, "02", lease_seconds=60)
    repository.end_duty(dead, again_in_seconds=60, position="03")
    assert repository.keep_duty(heir, "04", lease_seconds=60)
