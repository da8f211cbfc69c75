"""Events, attempts, manifest, metrics and verdict of a job."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from api.context import Services
from tests.api.conftest import FILES, METRICS, Caller, FakeWorker


def sse(text: str) -> list[dict[str, str]]:
    """The events of a stream that has ended, by the rules of the HTML standard."""
    found = []
    for block in text.split("\n\n"):
        fields = [line.split(": ", 1) for line in block.split("\n") if line and not line.startswith(":")]
        if any(name == "data" for name, _ in fields):
            found.append(dict(fields))
    return found


def test_events_are_counted_without_gaps(caller: Caller, worker: FakeWorker) -> None:
    job = caller.create()
    worker.run(job["id"])
    events = caller.get(f"/v1/jobs/{job['id']}/events").json()
    assert [event["seq"] for event in events["items"]] == list(range(1, len(events["items"]) + 1))
    assert [event["type"] for event in events["items"]].count("succeeded") == 1
    assert events["terminal"] is True
    assert set(events["items"][0]) == {"seq", "time", "type", "attempt", "data"}
    later = caller.get(f"/v1/jobs/{job['id']}/events?after=2").json()["items"]
    assert [event["seq"] for event in later] == [e["seq"] for e in events["items"] if e["seq"] > 2]


def test_a_list_that_is_cut_does_not_say_that_it_is_the_last(
    caller: Caller, worker: FakeWorker, services: Services
) -> None:
    job = caller.create()
    attempt = worker.claim(job["id"])
    for _ in range(1001):
        worker.progress(job["id"], attempt, 0.5)
    worker.succeed(job["id"], attempt)
    url = f"/v1/jobs/{job['id']}/events"
    first = caller.get(url).json()
    assert (len(first["items"]), first["terminal"]) == (1000, False)
    rest = caller.get(url, params={"after": first["items"][-1]["seq"]}).json()
    assert (rest["items"][-1]["type"], rest["terminal"]) == ("succeeded", True)
    beyond = caller.get(url, params={"after": rest["items"][-1]["seq"]}).json()
    assert beyond == {"items": [], "terminal": True}


@pytest.mark.parametrize("after", ["-1", "x", "1.5", "9" * 30])
def test_a_faulty_number_is_refused(caller: Caller, worker: FakeWorker, after: str) -> None:
    job = caller.create()
    assert caller.get(f"/v1/jobs/{job['id']}/events?after={after}").status_code == 422


class TestStream:
    def test_it_ends_after_the_last_event(self, caller: Caller, worker: FakeWorker) -> None:
        job = caller.create()
        worker.run(job["id"])
        url = f"/v1/jobs/{job['id']}/events"
        listed = caller.get(url).json()["items"]
        stream = caller.get(url, headers={"Accept": "text/event-stream"})
        assert stream.headers["Content-Type"].startswith("text/event-stream")
        events = sse(stream.text)
        assert [json.loads(event["data"]) for event in events] == listed
        assert [event["id"] for event in events] == [str(item["seq"]) for item in listed]
        assert [event["event"] for event in events] == [item["type"] for item in listed]

    @pytest.mark.parametrize("last", ["2", "3"])
    def test_it_resumes_after_the_last_id(self, caller: Caller, worker: FakeWorker, last: str) -> None:
        job = caller.create()
        worker.run(job["id"])
        headers = {"Accept": "text/event-stream", "Last-Event-ID": last}
        events = sse(caller.get(f"/v1/jobs/{job['id']}/events", headers=headers).text)
        assert int(events[0]["id"]) == int(last) + 1

    def test_a_resumption_after_the_end_is_empty(self, caller: Caller, worker: FakeWorker) -> None:
        job = caller.create()
        worker.run(job["id"])
        headers = {"Accept": "text/event-stream", "Last-Event-ID": "999"}
        response = caller.get(f"/v1/jobs/{job['id']}/events", headers=headers)
        assert (response.status_code, sse(response.text)) == (200, [])

    def test_a_foreign_id_starts_from_the_beginning(self, caller: Caller, worker: FakeWorker) -> None:
        job = caller.create()
        worker.run(job["id"])
        headers = {"Accept": "text/event-stream", "Last-Event-ID": "x"}
        assert sse(caller.get(f"/v1/jobs/{job['id']}/events", headers=headers).text)[0]["id"] == "1"


def test_attempts_tell_how_each_try_went(caller: Caller, worker: FakeWorker, services: Services) -> None:
    job = caller.create()
    services.repository.mark_lost(job["id"], worker.claim(job["id"]), "engine_killed", "signal 9")
    worker.run(job["id"])
    items = caller.get(f"/v1/jobs/{job['id']}/attempts").json()["items"]
    assert [(item["number"], item["outcome"]) for item in items] == [(1, "lost"), (2, "succeeded")]
    assert items[0]["error"] == {"code": "engine_killed", "message": "signal 9"}


def test_artifacts_are_a_bare_list(caller: Caller, worker: FakeWorker) -> None:
    job = caller.create()
    assert caller.get(f"/v1/jobs/{job['id']}/artifacts").json() == []
    worker.run(job["id"])
    items = caller.get(f"/v1/jobs/{job['id']}/artifacts").json()
    assert [item["name"] for item in items] == sorted(FILES)
    for item in items:
        assert set(item) >= {"name", "media_type", "size", "sha256", "links"}
        assert caller.get(item["links"]["self"]).content == FILES[item["name"]]


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="no sha256sum on this machine")
def test_sha256sum_reads_the_manifest(caller: Caller, worker: FakeWorker, tmp_path: Path) -> None:
    job = caller.create()
    worker.run(job["id"])
    response = caller.get(f"/v1/jobs/{job['id']}/manifest")
    assert response.headers["Content-Type"].startswith("text/plain")
    for name, data in FILES.items():
        (tmp_path / name).write_bytes(data)
    command = ["sha256sum", "--strict", "-c"]
    checked = subprocess.run(command, input=response.content, cwd=tmp_path, capture_output=True, check=False)
    assert checked.returncode == 0, checked
    assert checked.stdout.count(b": OK") == len(FILES)


def test_results_of_a_job_that_has_not_succeeded_conflict(caller: Caller, worker: FakeWorker) -> None:
    queued, failed = caller.create(), caller.create()
    worker.services.repository.cancel_job(failed["id"])
    for job in (queued, failed):
        for path in ("metrics", "manifest"):
            assert caller.get(f"/v1/jobs/{job['id']}/{path}").status_code == 409
        assert caller.post(f"/v1/jobs/{job['id']}/artifacts/config.json/links", json={}).status_code == 409


def test_metrics_are_what_the_job_reported(caller: Caller, worker: FakeWorker) -> None:
    job = caller.create()
    worker.run(job["id"])
    assert caller.get(f"/v1/jobs/{job['id']}/metrics").json() == METRICS


class TestVerdict:
    @pytest.mark.parametrize(
        ("gates", "verdict", "strict"),
        [
            ([{"metric": "perplexity_ratio", "max": 1.3}], "pass", 200),
            ([{"metric": "perplexity_ratio", "max": 1.1}], "fail", 412),
            ([{"metric": "tokens_per_second_ratio", "max": 0.1}], "inconclusive", 412),
            (
                [{"metric": "perplexity_ratio", "max": 1.3}, {"metric": "tokens_per_second_ratio", "max": 1}],
                "inconclusive",
                412,
            ),
            ([], "none", 412),
        ],
    )
    def test_gates_decide_and_strict_makes_it_a_status(
        self, caller: Caller, worker: FakeWorker, gates: list[dict[str, Any]], verdict: str, strict: int
    ) -> None:
        job = caller.create(gates=gates)
        worker.run(job["id"])
        url = f"/v1/jobs/{job['id']}/verdict"
        plain = caller.get(url)
        assert (plain.status_code, plain.json()["verdict"]) == (200, verdict)
        assert [check["metric"] for check in plain.json()["checks"]] == [gate["metric"] for gate in gates]
        answer = caller.get(url, params={"strict": 1})
        assert answer.status_code == strict
        assert answer.json()["verdict"] == verdict
        assert caller.get(f"/v1/jobs/{job['id']}").json()["verdict"] == verdict

    @pytest.mark.parametrize("strict", ["yes", "on", "2", "", "t"])
    def test_a_word_that_means_neither_is_no_permission(
        self, caller: Caller, worker: FakeWorker, strict: str
    ) -> None:
        job = caller.create(gates=[{"metric": "perplexity_ratio", "max": 1.1}])
        worker.run(job["id"])
        url = f"/v1/jobs/{job['id']}/verdict"
        refused = caller.get(url, params={"strict": strict})
        assert (refused.status_code, refused.json()["errors"][0]["loc"]) == (422, ["query", "strict"])
        assert caller.get(url, params={"strict": "True"}).status_code == 412
        assert caller.get(url, params={"strict": "false"}).status_code == 200

    def test_there_is_none_while_the_job_goes_on(self, caller: Caller, worker: FakeWorker) -> None:
        job = caller.create()
        response = caller.get(f"/v1/jobs/{job['id']}/verdict")
        assert (response.status_code, response.json()["code"]) == (409, "job_not_ended")

    def test_a_job_that_did_not_succeed_has_none(self, caller: Caller, worker: FakeWorker) -> None:
        bare, gated = caller.create(), caller.create(gates=[{"metric": "seconds", "max": 1000}])
        worker.fail(bare["id"])
        worker.fail(gated["id"])
        for job in (bare, gated):
            assert caller.get(f"/v1/jobs/{job['id']}/verdict").json() == {"verdict": "none", "checks": []}
            assert caller.get(f"/v1/jobs/{job['id']}/verdict?strict=1").status_code == 412
