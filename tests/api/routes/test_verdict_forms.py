"""The verdict that is waited for, and as Markdown and JUnit."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import junitparser
import pytest
from fastapi import FastAPI

from api import models
from api.context import Services
from api.verdict import markdown
from api.verdict.accepting import choose
from api.verdict.answering import OFFERED
from api.verdict.wording import number
from tests.api.conftest import METRICS, Caller, FakeWorker
from tests.api.waiting.test_waiting import Connect, closing, held, run

GATES = [
    {"metric": "perplexity_ratio", "max": 1.1},
    {"metric": "seconds", "max": 10},
    {"metric": "bias_change", "min": -0.1, "max": 0.1},
]
TEXTS = ("text/markdown", "application/xml")
MEASURED = {**METRICS, "perplexity_ratio_low": 1.15, "perplexity_ratio_high": 1.25}


def ended(caller: Caller, worker: FakeWorker, **fields: Any) -> str:
    job = caller.create(**fields)
    worker.run(job["id"], metrics=MEASURED)
    return f"/v1/jobs/{job['id']}/verdict"


class TestWaiting:
    def test_a_submission_can_wait_for_the_end_and_be_repeated(
        self, caller: Caller, connect_async: Connect, worker: FakeWorker, services: Services
    ) -> None:
        body = {"kind": "analyze", "spec": {"model": {"source": "local", "name": "tiny"}}}
        headers = {"Prefer": "wait=99", "Idempotency-Key": "once"}

        async def story() -> list[httpx.Response]:
            async with connect_async(caller.key) as client:
                first = asyncio.create_task(client.post("/v1/jobs", json=body, headers=headers))
                await held(services)
                again = asyncio.create_task(client.post("/v1/jobs", json=body, headers=headers))
                while sum(watch.watchers for watch in services.notifier._watches.values()) < 2:
                    await asyncio.sleep(0.01)
                [job] = services.repository.list_jobs("acme").items
                await asyncio.to_thread(worker.run, job.id)
                answers = [await first, await again]
                await closing(services)
                return answers

        first, again = run(story())
        assert first.json() == again.json()
        assert (first.status_code, first.json()["state"]) == (202, "succeeded")
        assert first.headers["Preference-Applied"] == "wait=60"
        assert first.headers["Location"] == f"/v1/jobs/{first.json()['id']}"

    def test_a_submission_that_waited_in_vain_gives_the_job_as_it_is(
        self, caller: Caller, worker: FakeWorker, services: Services
    ) -> None:
        body = {"kind": "analyze", "spec": {"model": {"source": "local", "name": "tiny"}}}
        with caller:
            answer = caller.post("/v1/jobs", json=body, headers={"Prefer": "wait=1"})
        assert (answer.status_code, answer.json()["state"]) == (202, "queued")

    def test_a_repeat_of_a_job_that_was_deleted_gets_the_first_answer(
        self, caller: Caller, worker: FakeWorker
    ) -> None:
        body = {"kind": "analyze", "spec": {"model": {"source": "local", "name": "tiny"}}}
        headers = {"Prefer": "wait=5", "Idempotency-Key": "once"}
        job = caller.post("/v1/jobs", json=body, headers={"Idempotency-Key": "once"}).json()
        caller.post(f"/v1/jobs/{job['id']}/cancel")
        caller.delete(f"/v1/jobs/{job['id']}")
        again = caller.post("/v1/jobs", json=body, headers=headers)
        assert (again.status_code, again.json()) == (202, job)

    @pytest.mark.parametrize("accept", ["application/json", *TEXTS])
    def test_a_verdict_comes_as_soon_as_the_job_has_ended(
        self, caller: Caller, connect_async: Connect, worker: FakeWorker, services: Services, accept: str
    ) -> None:
        job = caller.create(gates=GATES)

        async def story() -> httpx.Response:
            async with connect_async(caller.key) as client:
                url = f"/v1/jobs/{job['id']}/verdict?strict=1&wait=3600"
                waiting = asyncio.create_task(client.get(url, headers={"Accept": accept}))
                await held(services)
                await asyncio.to_thread(worker.run, job["id"])
                answer: httpx.Response = await waiting
                await closing(services)
                return answer

        answer = run(story())
        assert answer.status_code == 412
        assert answer.headers["Vary"] == "Accept"
        assert "perplexity_ratio" in answer.text

    @pytest.mark.parametrize("accept", ["*/*", *TEXTS])
    def test_a_wait_in_vain_asks_to_come_again(self, caller: Caller, worker: FakeWorker, accept: str) -> None:
        job = caller.create()
        with caller:
            answer = caller.get(f"/v1/jobs/{job['id']}/verdict?wait=1", headers={"Accept": accept})
        assert (answer.status_code, answer.headers["Retry-After"]) == (408, "1")
        assert answer.headers["Vary"] == "Accept"
        if accept in TEXTS:
            assert answer.content == b""  # curl prints every body that it retries over
        else:
            assert answer.json()["code"] == "job_not_ended"

    @pytest.mark.parametrize("wait", ["-1", "x", "1.5", ""])
    def test_a_wait_is_a_number_of_seconds(self, caller: Caller, worker: FakeWorker, wait: str) -> None:
        job = caller.create()
        assert caller.get(f"/v1/jobs/{job['id']}/verdict?wait={wait}").status_code == 422

    def test_an_end_that_a_retry_undid_is_none(
        self, caller: Caller, connect_async: Connect, worker: FakeWorker, services: Services
    ) -> None:
        job = caller.create()
        url = f"/v1/jobs/{job['id']}/verdict"

        async def story() -> httpx.Response:
            async with connect_async(caller.key) as client:
                with services.notifier.watch(job["id"]) as watch:  # somebody else, who saw the cancelling
                    await asyncio.to_thread(services.repository.cancel_job, job["id"])
                    while watch.version is None or not watch.version.terminal:
                        await asyncio.sleep(0.01)
                    await asyncio.to_thread(services.repository.retry_job, job["id"])
                    answer: httpx.Response = await client.get(f"{url}?wait=1")
                await closing(services)
                return answer

        assert run(story()).status_code == 408


class TestMarkdown:
    def test_it_says_for_each_check_what_was_measured_and_wanted(
        self, caller: Caller, worker: FakeWorker
    ) -> None:
        url = ended(caller, worker, gates=GATES)
        answer = caller.get(url, headers={"Accept": "text/markdown"})
        assert (answer.status_code, answer.headers["Content-Type"]) == (200, "text/markdown; charset=utf-8")
        lines = answer.text.splitlines()
        assert [line for line in lines if line.startswith("#")] == ["## OptiPFair verdict: fail"]
        assert "| perplexity_ratio | 1.2 (1.15 … 1.25) | ≤ 1.1 | fail |" in lines
        assert "| seconds | 1.5 | ≤ 10 | pass |" in lines
        assert any(
            x.startswith("| bias_change | not reported | ≥ -0.1 and ≤ 0.1 | inconclusive: ") for x in lines
        )
        assert f"http://127.0.0.1:8000/jobs/{url.split('/')[3]}" in answer.text
        strict = caller.get(url, params={"strict": 1}, headers={"Accept": "text/markdown"})
        assert (strict.status_code, strict.content) == (412, answer.content)

    def test_a_job_that_did_not_succeed_says_why(self, caller: Caller, worker: FakeWorker) -> None:
        job = caller.create(gates=GATES)
        worker.fail(job["id"])
        text = caller.get(f"/v1/jobs/{job['id']}/verdict", headers={"Accept": "text/markdown"}).text
        assert text.startswith("## OptiPFair verdict: none\n")
        assert "The job failed: `non_finite_weights`, `layer 3 holds NaN`" in text

    @pytest.mark.parametrize(
        ("text", "shown"),
        [
            ("a|b", "a\\|b"),
            ("<img src=x>", "&lt;img src=x&gt;"),
            ("step.perplexity_ratio", "step.perplexity_ratio"),
            ("_emphasis_ *strong*", "\\_emphasis\\_ \\*strong\\*"),
            ("[x](http://y)", "\\[x\\](http://y)"),
            ("two\nlines", "two lines"),
            ("\x1b[31mred", "\\[31mred"),
        ],
    )
    def test_markup_in_words_stays_words(self, text: str, shown: str) -> None:
        assert markdown.plain(text) == shown

    def test_backticks_do_not_end_a_code_span(self) -> None:
        assert markdown.code("a `b`` @c") == "``` a `b`` @c ```"

    def test_it_stays_small(self, caller: Caller, worker: FakeWorker, services: Services) -> None:
        job = caller.create()
        services.repository.mark_failed(job["id"], worker.claim(job["id"]), "x", "<" * 200_000)
        text = caller.get(f"/v1/jobs/{job['id']}/verdict", headers={"Accept": "text/markdown"})
        assert len(text.content) < 60_000
        names = models.Check(
            metric="<" * 160,
            result="inconclusive",
            value=1e300 / 3,
            low=-1e300 / 3,
            high=1e300 / 3,
            min=0.1 + 0.2,
            max=None,
            reason="<" * 200,
        )
        assert len(markdown._table([names] * 32).encode()) < 60_000


class TestJunit:
    def test_each_gate_is_a_test_case(self, caller: Caller, worker: FakeWorker) -> None:
        answer = caller.get(ended(caller, worker, gates=GATES), headers={"Accept": "application/xml"})
        assert answer.headers["Content-Type"].startswith("application/xml")
        [suite] = junitparser.JUnitXml.fromstring(answer.content)
        assert (suite.tests, suite.failures, suite.errors) == (3, 1, 1)
        failed, passed, undecided = suite
        assert (failed.name, passed.name, undecided.name) == ("perplexity_ratio", "seconds", "bias_change")
        [failure], [error] = failed.result, undecided.result
        assert isinstance(failure, junitparser.Failure)
        assert "1.2 (1.15 … 1.25)" in failure.message
        assert "≤ 1.1" in failure.message
        assert isinstance(error, junitparser.Error)
        assert passed.is_passed

    def test_two_gates_on_one_metric_have_two_names(self, caller: Caller, worker: FakeWorker) -> None:
        gates = [{"metric": "seconds", "max": 10}, {"metric": "seconds", "min": 1}]
        answer = caller.get(ended(caller, worker, gates=gates), headers={"Accept": "application/xml"})
        [suite] = junitparser.JUnitXml.fromstring(answer.content)
        assert [case.name for case in suite] == ["seconds ≤ 10", "seconds ≥ 1"]

    def test_a_job_that_did_not_succeed_is_one_error(
        self, caller: Caller, worker: FakeWorker, services: Services
    ) -> None:
        job = caller.create(gates=GATES)
        services.repository.mark_failed(job["id"], worker.claim(job["id"]), "x", "not \x0bXML ]]> <&\ufffe")
        answer = caller.get(f"/v1/jobs/{job['id']}/verdict?strict=1", headers={"Accept": "application/xml"})
        assert answer.status_code == 412
        [suite] = junitparser.JUnitXml.fromstring(answer.content)
        [[error]] = [case.result for case in suite]
        assert isinstance(error, junitparser.Error)
        assert error.type == "x"


class TestAccept:
    @pytest.mark.parametrize(
        ("accept", "form"),
        [
            (None, "application/json"),
            ("*/*", "application/json"),
            ("application/json", "application/json"),
            ("text/markdown", "text/markdown"),
            ("TEXT/Markdown; charset=utf-8", "text/markdown"),
            ("text/*", "text/markdown"),
            ("application/xml, */*;q=0.5", "application/xml"),
            ("text/markdown, */*", "text/markdown"),
            ("application/json;q=0.2, application/xml;q=0.9", "application/xml"),
            ("application/json;q=0, */*", "text/markdown"),
            ("text/html", None),
            ("text/markdown;q=0", None),
            ("text/markdown;q=nan", None),
            ("nonsense", None),
        ],
    )
    def test_the_form_that_is_liked_best(self, accept: str | None, form: str | None) -> None:
        assert choose(accept, OFFERED) == form

    def test_what_there_is_not_is_406(self, caller: Caller, worker: FakeWorker) -> None:
        answer = caller.get(ended(caller, worker), headers={"Accept": "text/html"})
        assert (answer.status_code, answer.json()["code"]) == (406, "not_acceptable")
        assert answer.headers["Vary"] == "Accept"


@pytest.mark.parametrize(
    ("value", "beside", "shown"),
    [
        (120_000.0, (), "120000"),
        (1.23456789, (), "1.23457"),
        (1.30000001, (1.3,), "1.30000001"),
        (1.3, (1.3,), "1.3"),
        (1e20, (), "1e+20"),
        (-2.0, (), "-2"),
    ],
)
def test_numbers_are_short_but_never_hide_a_difference(
    value: float, beside: tuple[float, ...], shown: str
) -> None:
    assert number(value, beside) == shown


class TestOrderOfChecks:
    """A request without a key is refused for that, whatever its body holds."""

    @pytest.mark.parametrize("path", ["/v1/jobs", "/v1/jobs:validate", "/v1/keys", "/v1/webhooks"])
    @pytest.mark.parametrize(
        "content", [b"[" * 1000, b"x" * 1_000_001, b"{", b""], ids=["deep", "long", "bad", "none"]
    )
    def test_the_key_comes_before_the_body(
        self, nobody: Caller, app: FastAPI, path: str, content: bytes
    ) -> None:
        assert nobody.post(path, content=content).status_code == 401
        wrong = nobody.post(path, content=content, headers={"Authorization": "Bearer ofk_wrong"})
        assert wrong.status_code == 401

    def test_the_scope_comes_before_the_body(self, reader: Caller) -> None:
        assert reader.post("/v1/jobs", content=b"[" * 1000).status_code == 403

    def test_a_long_body_that_was_not_read_ends_the_connection(self, nobody: Caller, caller: Caller) -> None:
        for who, status in ((nobody, 401), (caller, 413)):
            answer = who.post("/v1/jobs", content=b"x" * 1_000_001)
            assert (answer.status_code, answer.headers["Connection"]) == (status, "close")
        assert "Connection" not in nobody.post("/v1/jobs", content=b"{}").headers


class TestLists:
    def listed(self, caller: Caller, query: str) -> list[str]:
        answer = caller.get(f"/v1/jobs?{query}")
        assert answer.status_code == 200, answer.text
        return [job["id"] for job in answer.json()["items"]]

    def test_by_the_presence_of_a_label(self, caller: Caller, worker: FakeWorker) -> None:
        jobs = [
            caller.create(labels=labels)["id"] for labels in ({"team": "nlp"}, {"team": "cv"}, {"run": "1"})
        ]
        assert self.listed(caller, "label.team") == [jobs[1], jobs[0]]
        assert self.listed(caller, "label.team=") == [jobs[1], jobs[0]]
        assert self.listed(caller, "label.team=cv") == [jobs[1]]
        assert self.listed(caller, "label.team&label.run") == []

    def test_by_verdict(self, caller: Caller, worker: FakeWorker) -> None:
        gates = [[{"metric": "perplexity_ratio", "max": bound}] for bound in (1.1, 1.3)]
        failed, passed = (ended(caller, worker, gates=gate).split("/")[3] for gate in gates)
        bare, queued = ended(caller, worker).split("/")[3], caller.create()["id"]
        assert self.listed(caller, "verdict=fail") == [failed]
        assert self.listed(caller, "verdict=pass&kind=prune") == [passed]
        assert self.listed(caller, "verdict=none") == [bare]
        assert queued in self.listed(caller, "")
        assert caller.get("/v1/jobs?verdict=maybe").status_code == 422

    def test_by_the_beginning_of_an_id(self, caller: Caller, stranger: Caller, worker: FakeWorker) -> None:
        job = caller.create()["id"]
        for length in (8, 9, 13, 24, 35, 36):
            assert job in self.listed(caller, f"id_prefix={job[:length]}")
        assert self.listed(caller, f"id_prefix={job.upper()}") == [job]
        assert self.listed(caller, "id_prefix=ffff") == []
        assert self.listed(caller, f"id_prefix={job[0]}-{job[1]}") == []
        assert self.listed(stranger, f"id_prefix={job[:8]}") == []
        for wrong in ("", "x", "0" * 37, "%25"):
            assert caller.get(f"/v1/jobs?id_prefix={wrong}").status_code == 422

    def test_created_before_is_exclusive(self, caller: Caller, worker: FakeWorker) -> None:
        job = caller.create()
        at = job["created_at"]
        assert self.listed(caller, f"created_before={at}") == []
        assert self.listed(caller, "created_before=2100-01-01T00:00:00Z") == [job["id"]]
        assert self.listed(caller, "created_before=1999-01-01T00:00:00Z") == []
        refused = caller.get("/v1/jobs?created_before=yesterday")
        assert (refused.status_code, refused.json()["errors"][0]["loc"]) == (422, ["query", "created_before"])
