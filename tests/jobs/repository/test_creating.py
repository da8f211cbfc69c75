"""Creation: one transaction for job and message, quotas, idempotency, reuse."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable

import pytest
from sqlalchemy import Engine, update

from jobs.database import writing
from jobs.errors import (
    ConflictError,
    IdempotencyInFlightError,
    IdempotencyMismatchError,
    QueueFullError,
    QuotaExceededError,
)
from jobs.repository import Repository
from jobs.rows import Artifact, Idempotency, Job
from jobs.settings import Settings
from jobs.states import State
from jobs.tables import idempotency as idempotency_table
from tests.jobs.conftest import TENANT, prune_request

Create = Callable[..., Job]
BODY = {"kind": "prune", "spec": {"a": 1, "b": [1, 2]}}


def test_a_new_job_comes_with_its_event_and_its_message(repository: Repository, create: Create) -> None:
    job = create(labels={"team": "nlp"}, priority=5, timeout_seconds=60, webhook_url="https://example.org/x")
    assert (job.version, job.last_seq, job.attempt, job.timeout_seconds) == (1, 1, 0, 60)
    assert [event.type for event in repository.list_events(job.id)] == ["queued"]
    (message,) = repository.take_outbox()
    assert (message.job_id, message.queue, message.priority) == (job.id, "cpu", 5)


def test_defaults_are_stored_with_the_spec(repository: Repository, create: Create) -> None:
    spec = repository.get_job(create().id).spec
    assert (spec["neuron_selection_method"], spec["seed"], spec["pruning_percentage"]) == ("MAW", 0, 20.0)


def test_the_time_of_a_job_is_the_databases(repository: Repository, create: Create) -> None:
    before = repository.now()
    job = create()
    assert before <= job.created_at <= repository.now()
    assert job.queued_at == job.created_at


def test_a_tenants_quota_holds(engine: Engine, settings: Settings) -> None:
    tight = Repository(engine, settings.model_copy(update={"max_jobs_per_tenant": 2}))
    tight.ensure_tenant("a")
    tight.ensure_tenant("b")
    first = tight.create_job("a", prune_request(), queue="cpu")
    tight.create_job("a", prune_request(), queue="cpu")
    with pytest.raises(QuotaExceededError) as caught:
        tight.create_job("a", prune_request(), queue="cpu")
    assert (caught.value.limit, caught.value.retry_after > 0) == (2, True)
    tight.create_job("b", prune_request(), queue="cpu")
    tight.cancel_job(first.id)
    tight.create_job("a", prune_request(), queue="cpu")


def test_the_queues_depth_is_limited(engine: Engine, settings: Settings) -> None:
    tight = Repository(engine, settings.model_copy(update={"max_queue_depth": 1}))
    tight.ensure_tenant("a")
    job = tight.create_job("a", prune_request(), queue="cpu")
    with pytest.raises(QueueFullError):
        tight.create_job("a", prune_request(), queue="cpu")
    tight.claim(job.id, "w")
    tight.create_job("a", prune_request(), queue="cpu")


class TestIdempotency:
    def test_the_same_body_gets_the_first_answer_whatever_the_order_of_its_fields(
        self, repository: Repository
    ) -> None:
        first = repository.begin_idempotent(TENANT, "k", BODY)
        assert first.token is not None
        job = repository.create_job(
            TENANT, prune_request(), queue="cpu", idempotency=first, render=lambda j: json.dumps({"id": j.id})
        )
        repository.claim(job.id, "w")
        again = repository.begin_idempotent(TENANT, "k", dict(reversed(BODY.items())))
        assert again == Idempotency(token=None, response=json.dumps({"id": job.id}), job_id=job.id)

    def test_another_body_is_refused_before_and_after_the_answer(self, repository: Repository) -> None:
        first = repository.begin_idempotent(TENANT, "k", BODY)
        with pytest.raises(IdempotencyMismatchError):
            repository.begin_idempotent(TENANT, "k", {**BODY, "priority": 1})
        repository.create_job(TENANT, prune_request(), queue="cpu", idempotency=first)
        with pytest.raises(IdempotencyMismatchError):
            repository.begin_idempotent(TENANT, "k", {**BODY, "priority": 1})

    def test_a_request_in_flight_is_refused(self, repository: Repository) -> None:
        repository.begin_idempotent(TENANT, "k", BODY)
        with pytest.raises(IdempotencyInFlightError):
            repository.begin_idempotent(TENANT, "k", BODY)

    def test_keys_of_two_tenants_do_not_meet(self, repository: Repository) -> None:
        repository.ensure_tenant("other")
        assert repository.begin_idempotent(TENANT, "k", BODY).token is not None
        assert repository.begin_idempotent("other", "k", {"x": 1}).token is not None

    def test_a_refused_request_frees_its_key(self, repository: Repository) -> None:
        first = repository.begin_idempotent(TENANT, "k", BODY)
        assert first.token is not None
        repository.abandon_idempotent(TENANT, first.token)
        assert repository.begin_idempotent(TENANT, "k", {"other": True}).token is not None

    def test_a_request_that_died_on_the_way_can_be_taken_over_once(
        self, repository: Repository, engine: Engine
    ) -> None:
        dead = repository.begin_idempotent(TENANT, "k", BODY)
        with writing(engine) as connection:
            created = idempotency_table.c.created_at - 3_600_000
            connection.execute(update(idempotency_table).values(created_at=created))
        alive = repository.begin_idempotent(TENANT, "k", BODY)
        assert alive.token not in (None, dead.token)
        with pytest.raises(IdempotencyInFlightError):
            repository.begin_idempotent(TENANT, "k", BODY)
        with pytest.raises(ConflictError):  # the dead one comes back: it must not make a second job
            repository.create_job(TENANT, prune_request(), queue="cpu", idempotency=dead)
        assert repository.list_jobs(TENANT).items == []
        repository.create_job(TENANT, prune_request(), queue="cpu", idempotency=alive)

    def test_an_answer_is_forgotten_after_its_time(self, repository: Repository, engine: Engine) -> None:
        first = repository.begin_idempotent(TENANT, "k", BODY)
        repository.create_job(TENANT, prune_request(), queue="cpu", idempotency=first)
        with writing(engine) as connection:
            connection.execute(update(idempotency_table).values(expires_at=1))
        assert repository.begin_idempotent(TENANT, "k", {"new": True}).token is not None

    def test_purging_forgets_only_what_is_over(self, repository: Repository, engine: Engine) -> None:
        repository.begin_idempotent(TENANT, "old", BODY)
        with writing(engine) as connection:
            connection.execute(update(idempotency_table).values(expires_at=1))
        repository.begin_idempotent(TENANT, "new", BODY)
        assert repository.purge_idempotency() == 1

    def test_of_many_at_once_one_makes_the_job(self, repository: Repository) -> None:
        made: list[str] = []
        refused: list[str] = []
        barrier = threading.Barrier(6)

        def post() -> None:
            barrier.wait()
            try:
                turn = repository.begin_idempotent(TENANT, "k", BODY)
            except IdempotencyInFlightError:
                refused.append("in flight")
                return
            if turn.token is None:
                assert turn.job_id is not None
                made.append(turn.job_id)
            else:
                made.append(repository.create_job(TENANT, prune_request(), queue="cpu", idempotency=turn).id)

        threads = [threading.Thread(target=post) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(set(made)) == 1
        assert len(made) + len(refused) == 6
        assert len(repository.list_jobs(TENANT).items) == 1


class TestReuse:
    def finished(self, repository: Repository, key: str, tenant: str = TENANT) -> Job:
        repository.ensure_tenant(tenant)
        job = repository.create_job(tenant, prune_request(), queue="cpu", reuse_key=key)
        repository.claim(job.id, "w")
        stored = f"{job.id}/1"
        repository.mark_succeeded(
            job.id,
            1,
            artifacts=[Artifact("a.json", "application/json", 2, "ab" * 32, stored)],
            archive=Artifact("*", "application/x-tar", 9, "cd" * 32, stored),
            metrics={"seconds": 1.0, "perplexity_ratio": 1.1},
            publish=lambda: None,
        )
        return repository.get_job(job.id)

    def test_equal_work_is_not_done_twice(self, repository: Repository) -> None:
        source = self.finished(repository, "k")
        gates = [{"metric": "perplexity_ratio", "max": 1.0}]
        asked = prune_request(reuse=True, labels={"run": "2"}, gates=gates)
        repository.take_outbox()
        job = repository.create_job(TENANT, asked, queue="cpu", reuse_key="k")
        assert (job.state, job.reused_from, job.attempt) == (State.SUCCEEDED, source.id, 0)
        assert job.verdict == "fail"  # its own gates, on the same metrics
        assert repository.list_artifacts(job.id) == repository.list_artifacts(source.id)
        assert repository.get_artifact(job.id, "*") == repository.get_artifact(source.id, "*")
        assert repository.get_metrics(job.id) == repository.get_metrics(source.id)
        assert [event.type for event in repository.list_events(job.id)] == ["queued", "succeeded"]
        assert repository.take_outbox() == []

    def test_shared_files_stay_until_the_last_job_that_uses_them_goes(self, repository: Repository) -> None:
        source = self.finished(repository, "k")
        job = repository.create_job(TENANT, prune_request(reuse=True), queue="cpu", reuse_key="k")
        assert repository.delete_job(source.id) == []
        assert repository.live_storage([(source.id, 1)]) == {(source.id, 1)}
        assert repository.delete_job(job.id) == [f"{source.id}/1"]
        assert repository.live_storage([(source.id, 1)]) == set()

    @pytest.mark.parametrize("difference", ["not asked", "other key", "other tenant", "no key", "purged"])
    def test_it_is_done_again_when(
        self, repository: Repository, turn_back: Callable[..., None], difference: str
    ) -> None:
        source = self.finished(repository, "k", tenant="other" if difference == "other tenant" else TENANT)
        if difference == "purged":
            turn_back(source, "artifacts_expire_at", 10 * 365 * 24 * 3600)
            repository.take_expired_artifacts()
        key = {"other key": "k2", "no key": None}.get(difference, "k")
        request = prune_request(reuse=difference != "not asked")
        assert repository.create_job(TENANT, request, queue="cpu", reuse_key=key).state is State.QUEUED
