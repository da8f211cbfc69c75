"""Text that a database can't hold: found to be nothing, refused, or spelled out, but never a crash."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from jobs.errors import InvalidError, NotFoundError
from jobs.repository import Repository
from jobs.rows import Job, Progress
from jobs.webhooks import check_webhook_url
from tests.jobs.conftest import TENANT, prune_request

Create = Callable[..., Job]
HOSTILE = ["\x00", "a\x00b", "\ud800", "x" * 5000, "' OR 1=1 --", "../..", "", "\U0001f4a3"]


@pytest.mark.parametrize("text", HOSTILE)
def test_names_of_nothing_find_nothing(repository: Repository, create: Create, text: str) -> None:
    job = create(labels={"team": "nlp"})
    hook = repository.create_webhook(TENANT, "https://example.org")
    for look in (
        lambda: repository.get_job(text, TENANT),
        lambda: repository.get_version(text),
        lambda: repository.get_webhook(text, TENANT),
        lambda: repository.delete_webhook(text, TENANT),
        lambda: repository.redeliver(hook.id, TENANT, text),
        lambda: repository.revoke_key(text, TENANT),
    ):
        with pytest.raises(NotFoundError):
            look()
    assert repository.get_artifact(job.id, text) is None
    assert repository.get_artifact(text, "a") is None
    assert repository.list_jobs(TENANT, labels={"team": text}).items == []
    assert repository.list_jobs(TENANT, labels={text: "nlp"}).items == []


@pytest.mark.parametrize("text", HOSTILE)
def test_what_a_worker_says_is_kept_whatever_it_is(repository: Repository, create: Create, text: str) -> None:
    job = create()
    repository.claim(job.id, "w")
    assert repository.add_event(job.id, 1, "progress", {"m": text}, progress=Progress(0.5, "load", text))
    repository.mark_failed(job.id, 1, "bad", f"before {text} after")
    assert repository.list_events(job.id)[2].data == {"m": text.replace("\ud800", "?")}
    error = repository.get_job(job.id).error
    assert error is not None
    assert error.message.startswith("before ")
    assert error.message.endswith(" after")


@pytest.mark.parametrize("text", ["\x00", "a\nb\U0001f4a3", "\u2028"])
def test_a_spec_with_any_text_is_stored_as_it_came(repository: Repository, text: str) -> None:
    request = prune_request(spec={"calibration": {"texts": [text]}, "compensation": "least_squares"})
    job = repository.create_job(TENANT, request, queue="cpu")
    assert repository.get_job(job.id).spec["calibration"]["texts"] == [text]


@pytest.mark.parametrize("text", ["\x00", "\ud800", "a\nb"])
def test_names_that_cannot_be_printed_are_refused(repository: Repository, text: str) -> None:
    with pytest.raises(InvalidError):
        repository.create_key(TENANT, key_hash="h", hint="", scopes=[], name=text)
    with pytest.raises(InvalidError):
        repository.create_key(text, key_hash="h", hint="", scopes=[])
    with pytest.raises(InvalidError):
        check_webhook_url(f"https://example.org/{text}", allow_loopback=False)
