"""Keys, tenants, webhooks and workers."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable

import pytest
from sqlalchemy import Engine, update

from jobs import tables as t
from jobs.database import writing
from jobs.errors import InvalidError, NotFoundError
from jobs.repository import Repository
from jobs.repository.whole import totals
from jobs.rows import Job, LocalModel
from jobs.webhooks import BACKOFF_SECONDS, check_webhook_url
from tests.jobs.conftest import TENANT, some_id

Create = Callable[..., Job]


class TestKeys:
    def test_a_key_opens_until_it_is_revoked(self, repository: Repository) -> None:
        key = repository.create_key("new", key_hash="h1", hint="abcd", scopes=["jobs:read", "admin"])
        found = repository.find_key(["other", "h1"])
        assert found == key
        assert found is not None
        assert found.scopes == {"jobs:read", "admin"}
        for _ in range(2):
            repository.revoke_key(key.id, "new")
        assert repository.find_key(["h1"]) is None
        (revoked,) = repository.list_keys("new")
        assert revoked.revoked_at is not None

    def test_an_expired_key_opens_nothing(self, repository: Repository) -> None:
        now = repository.now()
        repository.create_key(TENANT, key_hash="past", hint="", scopes=[], expires_at=now - 1)
        repository.create_key(TENANT, key_hash="future", hint="", scopes=[], expires_at=now + 60_000)
        assert repository.find_key(["past"]) is None
        assert repository.find_key(["future"]) is not None

    def test_another_tenants_key_cannot_be_revoked(self, repository: Repository) -> None:
        key = repository.create_key("a", key_hash="h", hint="", scopes=[])
        with pytest.raises(NotFoundError):
            repository.revoke_key(key.id, "b")
        with pytest.raises(NotFoundError):
            repository.revoke_key(some_id(), None)
        repository.revoke_key(key.id, None)
        assert [k.id for k in repository.list_keys("a")] == [key.id]
        assert repository.list_keys("b") == []

    def test_a_tenant_is_made_once(self, repository: Repository) -> None:
        secret = repository.webhook_secret(TENANT)
        repository.ensure_tenant(TENANT)
        assert repository.webhook_secret(TENANT) == secret
        assert secret.startswith("whsec_")
        with pytest.raises(NotFoundError):
            repository.webhook_secret("nobody")


class TestWebhooks:
    def fail_job(self, repository: Repository, job: Job) -> None:
        repository.claim(job.id, "w")
        repository.mark_failed(job.id, 1, "model_bad", "layer 3 holds NaN")

    def test_an_end_is_told_to_whom_it_concerns(self, repository: Repository, create: Create) -> None:
        hook = repository.create_webhook(TENANT, "https://example.org/all")
        repository.create_webhook(TENANT, "https://example.org/good", ["job.succeeded"])
        repository.ensure_tenant("other")
        repository.create_webhook("other", "https://example.org/other")
        job = create(webhook_url="https://example.org/mine")
        assert repository.take_deliveries() == []
        self.fail_job(repository, job)
        due = {item.url: item for item in repository.take_deliveries()}
        assert set(due) == {"https://example.org/all", "https://example.org/mine"}
        assert due["https://example.org/all"].secret == hook.secret
        assert due["https://example.org/mine"].secret == repository.webhook_secret(TENANT)
        message = json.loads(due["https://example.org/all"].payload)
        assert message["type"] == "job.failed"
        assert message["data"]["id"] == job.id
        assert message["data"]["error"] == {"code": "model_bad", "message": "layer 3 holds NaN"}
        assert repository.take_deliveries() == []  # reserved

    def test_tries_back_off_and_end(self, repository: Repository, create: Create, engine: Engine) -> None:
        hook = repository.create_webhook(TENANT, "https://example.org")
        self.fail_job(repository, create())
        waits = []
        for _ in range(len(BACKOFF_SECONDS) + 1):
            (item,) = repository.take_deliveries()
            repository.mark_undelivered(item.id, 500, "internal error")
            (state,) = repository.list_deliveries(hook.id, TENANT)
            if state.next_try_at is not None:
                waits.append(round((state.next_try_at - repository.now()) / 1000))
            with writing(engine) as connection:
                due = t.webhook_deliveries.c.next_try_at.is_not(None)
                connection.execute(update(t.webhook_deliveries).where(due).values(next_try_at=1))
        assert all(abs(wait - wanted) <= 2 for wait, wanted in zip(waits, BACKOFF_SECONDS, strict=True))
        (state,) = repository.list_deliveries(hook.id, TENANT)
        assert (state.state, state.tries, state.last_status) == ("failed", len(BACKOFF_SECONDS) + 1, 500)
        assert repository.take_deliveries() == []
        assert repository.redeliver(hook.id, TENANT) == 1
        (item,) = repository.take_deliveries()
        repository.mark_delivered(item.id, 204)
        (state,) = repository.list_deliveries(hook.id, TENANT)
        assert (state.state, state.last_status, state.next_try_at) == ("delivered", 204, None)
        assert repository.redeliver(hook.id, TENANT) == 0
        assert repository.redeliver(hook.id, TENANT, state.id) == 1

    def test_many_senders_take_each_message_once(self, repository: Repository, create: Create) -> None:
        repository.create_webhook(TENANT, "https://example.org")
        for _ in range(6):
            self.fail_job(repository, create())
        taken: list[str] = []

        def send() -> None:
            for _ in range(3):
                taken.extend(item.id for item in repository.take_deliveries(limit=2))

        threads = [threading.Thread(target=send) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        taken.extend(item.id for item in repository.take_deliveries())
        assert len(taken) == len(set(taken)) == 6

    def test_other_tenants_see_nothing(self, repository: Repository) -> None:
        hook = repository.create_webhook(TENANT, "https://example.org")
        calls: list[Callable[[], object]] = [
            lambda: repository.get_webhook(hook.id, "other"),
            lambda: repository.delete_webhook(hook.id, "other"),
            lambda: repository.list_deliveries(hook.id, "other"),
            lambda: repository.redeliver(hook.id, "other"),
            lambda: repository.redeliver(hook.id, TENANT, some_id()),
        ]
        for call in calls:
            with pytest.raises(NotFoundError):
                call()
        assert repository.list_webhooks("other") == []
        assert repository.list_webhooks(TENANT) == [hook]

    def test_a_deleted_webhook_takes_its_messages_along(self, repository: Repository, create: Create) -> None:
        hook = repository.create_webhook(TENANT, "https://example.org")
        self.fail_job(repository, create())
        repository.delete_webhook(hook.id, TENANT)
        assert repository.take_deliveries() == []


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org/x",
        "https://127.0.0.1/x",
        "https://10.0.0.1",
        "https://169.254.169.254/latest",
        "https://[::1]/",
        "https://[::ffff:10.0.0.1]/",
        "https://[64:ff9b::7f00:1]/",
        "https://[64:ff9b:1::1]/",
        "https://[2002:7f00:1::]/",
        "https://[2001:0:7f00:1::]/",
        "https://[2001:db8::1]/",
        "https://[3fff::1]/",
        "https://[5f00::1]/",
        "https://[fec0::1]/",
        "https://[fd00::1]/",
        "https://[::ffff:0:7f00:1]/",
        "https://[::7f00:1]/",
        "https://224.0.0.1/",
        "https://[ff0e::1]/",
        "https://0x7f000001/",
        "https://2130706433/",
        "https://127.1/",
        "https://0177.0.0.1/",
        "https://localhost/",
        "https://a.localhost/",
        "https://user:pw@example.org/",
        "https:///x",
        "https://[bad/",
        "https://example.org:99999/",
        "ftp://example.org/",
        "example.org",
        "https://0.0.0.0/",
        "https://100.64.0.1/",
    ],
)
def test_webhook_urls_that_are_refused(url: str) -> None:
    with pytest.raises(InvalidError) as caught:
        check_webhook_url(url, allow_loopback=False)
    assert caught.value.code == "webhook_url_invalid"


@pytest.mark.parametrize(
    "url",
    [
        "https://example.org",
        "https://8.8.8.8:8443/x?y=1",
        "https://[2606:4700::1]/",
        "https://[64:ff9b::808:808]",
    ],
)
def test_webhook_urls_that_are_accepted(url: str) -> None:
    check_webhook_url(url, allow_loopback=False)


def test_loopback_is_for_development_only_and_nothing_else_comes_with_it() -> None:
    for url in ("http://127.0.0.1:9000/", "https://localhost/x", "http://[::1]/"):
        check_webhook_url(url, allow_loopback=True)
    for url in ("http://example.org", "https://10.0.0.1", "http://169.254.169.254"):
        with pytest.raises(InvalidError):
            check_webhook_url(url, allow_loopback=True)


class TestWorkers:
    def beat(self, repository: Repository, name: str, *models: LocalModel, draining: bool = False) -> None:
        repository.worker_beat(
            name,
            queues=["cpu"],
            devices=["cpu"],
            models=models,
            files={"calibration": ["a.txt"]},
            allow_hub=False,
            code_version="1",
            draining=draining,
        )

    def test_who_beats_is_alive(self, repository: Repository, engine: Engine) -> None:
        self.beat(repository, "w1")
        self.beat(repository, "w2")
        started = repository.live_workers()[0].started_at
        self.beat(repository, "w1", LocalModel("tiny", "r"))
        live = repository.live_workers()
        assert [worker.id for worker in live] == ["w1", "w2"]
        assert live[0].started_at == started
        assert live[0].models == [LocalModel("tiny", "r")]
        assert live[0].files == {"calibration": ["a.txt"]}
        with writing(engine) as connection:
            silent = t.workers.update().where(t.workers.c.id == "w2")
            connection.execute(silent.values(seen_at=t.workers.c.seen_at - 46_000))
        self.beat(repository, "w3", draining=True)
        assert [worker.id for worker in repository.live_workers()] == ["w1"]
        for _ in range(2):
            repository.worker_gone("w1")
        assert repository.live_workers() == []
        assert repository.purge_workers(older_than_seconds=40) == 1

    def test_what_workers_of_a_sleeping_queue_had_is_remembered_once(
        self, repository: Repository, engine: Engine
    ) -> None:
        sleeping = repository.settings.model_copy(update={"sleeping_queues": "cpu"})
        mine = Repository(engine, sleeping)
        for worker, model in (("w1", "tiny"), ("w2", "tiny"), ("w3", "large")):
            self.beat(mine, worker, LocalModel(model, "r"))
            mine.worker_gone(worker)
        assert mine.live_workers() == []
        asleep = mine.sleeping_workers()
        assert {worker.models[0].name for worker in asleep} == {"tiny", "large"}
        assert all(worker.asleep and worker.queues == ["cpu"] for worker in asleep)
        with writing(engine) as connection:
            connection.execute(t.workers.update().values(seen_at=t.workers.c.seen_at - 46_000))
        assert mine.purge_workers() == 1  # of two that had the same, one
        assert len(mine.sleeping_workers()) == 2
        assert repository.sleeping_workers() == [] and repository.known_workers() == []
        with writing(engine) as connection:
            month = t.workers.c.seen_at - 31 * 24 * 3600 * 1000
            connection.execute(t.workers.update().values(seen_at=month))
        assert mine.purge_workers() == 2
        assert mine.sleeping_workers() == []


def test_totals_that_another_process_has_folded_meanwhile_are_no_error(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(totals, "_FOLD_AT", 0)
    assert repository.fold_totals() == 0
