"""The form that builds a job, the comparison, and the pages of models, the system and access."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html import unescape
from urllib.parse import urlencode

import httpx
import pytest
from fastapi import FastAPI

from api.dashboard import form as fields
from tests.api.conftest import FORM, Caller, FakeWorker
from tests.api.dashboard.samples import GATES, finish

PRUNE = {"kind": "prune", "model": "local:tiny", "preset": "guide", "pruning_type": "MLP_GLU",
         "size": "20", "size_name": "pruning_percentage"}  # fmt: skip


@pytest.fixture
def chief(app: FastAPI, admin: Caller) -> Caller:
    """An admin who has logged in."""
    visitor = Caller(app, None)
    visitor.post("/ui/login", content=f"key={admin.key}", headers=FORM)
    return visitor


def send(visitor: Caller, path: str, **form: object) -> httpx.Response:
    return visitor.post(path, content=urlencode(form, doseq=True), headers=FORM, follow_redirects=False)


class TestForm:
    def test_it_creates_the_job_that_it_previewed(
        self, browser: Caller, caller: Caller, worker: FakeWorker
    ) -> None:
        wanted = {
            **PRUNE,
            "evaluation": "typed:",
            "evaluation_typed": "One text.\n\nAnother one.",
            "gate_metric_0": "perplexity_ratio",
            "gate_max_0": "1.3",
            "labels": "team=nlp",
            "more": '{"verify": "structure"}',
        }
        shown = browser.post("/ui/new/preview", content=urlencode(wanted), headers=FORM)
        assert "Memory at its peak" in shown.text
        command = unescape(re.search(r'id="command"[^>]*>(.*?)</pre>', shown.text, re.DOTALL)[1])  # type: ignore[index]
        body = json.loads(command[command.index("{") : command.rindex("}") + 1])
        answer = send(browser, "/ui/new", **wanted)
        assert answer.status_code == 303, answer.text
        job = caller.get("/v1" + answer.headers["Location"]).json()
        assert job["labels"] == {"team": "nlp"} == body["labels"]
        assert job["gates"][0]["max"] == 1.3
        assert job["spec"]["evaluation"]["texts"] == ["One text.", "Another one."]
        assert job["spec"]["verify"] == "structure"
        assert caller.post("/v1/jobs", json=body).json()["spec"] == job["spec"]

    @pytest.mark.parametrize(
        ("wrong", "said"),
        [
            ({"size": "many"}, "is not a number"),
            ({"size": "120"}, "pruning_percentage"),
            ({"model": "local:nothing"}, "no live worker has a model named"),
            ({"model": ""}, "Choose a model"),
            ({"gate_metric_0": "perplexity_ratio", "gate_max_0": "1.3"}, "needs evaluation"),
            ({"more": "{"}, "This is not JSON"),
            ({"labels": "team"}, "write it as name=value"),
        ],
    )
    def test_it_says_what_is_wrong_and_keeps_what_was_filled_in(
        self, browser: Caller, caller: Caller, worker: FakeWorker, wrong: dict[str, str], said: str
    ) -> None:
        wanted = {**PRUNE, "gate_metric_1": "output_bytes", "gate_max_1": "12345"} | wrong
        answer = send(browser, "/ui/new", **wanted)
        assert answer.status_code == 422
        assert said in unescape(answer.text)
        assert 'value="12345"' in answer.text
        assert caller.get("/v1/jobs").json()["items"] == []

    def test_bias_pairs_are_lines(self) -> None:
        form = {"kind": ["bias"], "model": ["local:tiny"], "prompt_pairs": ["a | b\nc | d"]}
        assert fields.request_of(form)["spec"]["prompt_pairs"] == [["a", "b"], ["c", "d"]]

    def test_a_job_can_be_changed_and_run_again(
        self, browser: Caller, caller: Caller, worker: FakeWorker
    ) -> None:
        job = caller.create(gates=GATES, labels={"team": "nlp"})
        made = fields.form_of_job("prune", job["spec"], job["labels"], job["gates"])
        again = caller.post("/v1/jobs", json=fields.request_of(made)).json()
        assert (again["spec"], again["gates"]) == (job["spec"], job["gates"])
        assert 'value="perplexity_ratio"' in browser.get(f"/ui/new?from={job['id']}").text

    @pytest.mark.parametrize(
        ("kind", "spec"),
        [
            ("prune", {"target_parameters": 123_456_789}),
            ("prune", {"pruning_percentage": 12.3456789}),
            ("prune", {"pruning_type": "DEPTH", "layer_indices": [1]}),
            ("bias", {"suites": ["crows_pairs"]}),
            ("bias", {"suites": ["crows_pairs", "bbq"]}),
        ],
    )
    def test_nothing_is_rounded_added_or_left_out_when_a_job_is_run_again(
        self, kind: str, spec: dict[str, object]
    ) -> None:
        gates = [{"metric": f"m{place}", "min": None, "max": 1 + place / 3e6} for place in range(5)]
        asked = {"model": {"source": "local", "name": "tiny"}, **spec}
        again = fields.request_of(fields.form_of_job(kind, asked, {}, gates))
        assert again["spec"] == asked
        assert [(gate["metric"], gate["max"]) for gate in again["gates"]] == [
            (gate["metric"], gate["max"]) for gate in gates
        ]

    def test_suites_of_the_catalogue_are_offered_by_name(
        self, browser: Caller, caller: Caller, worker: FakeWorker
    ) -> None:
        assert '<option value="catalogue:optipfair">' in browser.get("/ui/new").text
        wanted = {"kind": "bias", "model": "local:tiny", "suite": "catalogue:optipfair"}
        assert send(browser, "/ui/new", **wanted).status_code == 303
        assert caller.get("/v1/jobs").json()["items"][0]["spec"]["suites"] == ["optipfair"]
        assert "OptiPFair's own, English" in unescape(browser.get("/ui/models").text)

    def test_a_pipeline_is_not_offered_for_a_form_that_cannot_hold_it(
        self, browser: Caller, caller: Caller, worker: FakeWorker
    ) -> None:
        step = {"name": "one", "kind": "analyze", "spec": {"model": {"source": "local", "name": "tiny"}}}
        job = caller.post("/v1/jobs", json={"kind": "pipeline", "spec": {"steps": [step]}}).json()
        assert "/ui/new?from=" not in browser.get(f"/jobs/{job['id']}").text
        assert browser.get(f"/ui/new?from={job['id']}").status_code == 422
        other = caller.create()["id"]
        assert f"/ui/new?from={other}" in browser.get(f"/jobs/{other}").text

    def test_a_reader_gets_no_form(self, app: FastAPI, reader: Caller, worker: FakeWorker) -> None:
        visitor = Caller(app, None)
        visitor.post("/ui/login", content=f"key={reader.key}", headers=FORM)
        assert visitor.get("/ui/new").status_code == 403
        assert send(visitor, "/ui/new", **PRUNE).status_code == 403
        assert "New job" not in visitor.get("/").text


def test_two_jobs_are_compared(browser: Caller, caller: Caller, stranger: Caller, worker: FakeWorker) -> None:
    jobs = [caller.create(spec={"pruning_percentage": share}) for share in (20, 30)]
    for job in jobs:
        finish(worker, job, worker.claim(job["id"]))
    page = browser.get(f"/ui/compare?id={jobs[0]['id']}&id={jobs[1]['id']}").text
    asked = re.findall(r'<th scope="row" class="mono small">(\w+)</th><td class="wrap">(.*?)</td>', page)
    assert asked == [("pruning_percentage", "20")]
    assert page.count("Layers keep between") >= 2
    assert "Choose two jobs" in browser.get(f"/ui/compare?id={jobs[0]['id']}").text
    assert browser.get(f"/ui/compare?id={stranger.create()['id']}").status_code == 404


def test_the_system_page_shows_workers_queues_and_room(
    browser: Caller, chief: Caller, caller: Caller, stranger: Caller, worker: FakeWorker
) -> None:
    worker.run(caller.create()["id"])
    theirs = stranger.create()
    worker.run(theirs["id"])
    page = browser.get("/ui/system").text
    for wanted in ("worker-1", "Files of acme", "short", "SQLAlchemy".lower()):
        assert wanted in page, wanted
    assert theirs["id"] not in page
    assert "Files of other" not in page
    assert "Files of other" in chief.get("/ui/system").text


def test_models_and_uploads_are_listed(
    browser: Caller, caller: Caller, stranger: Caller, worker: FakeWorker
) -> None:
    files = [{"name": "a.txt", "size": 3, "sha256": "0" * 64}]
    mine = caller.post("/v1/uploads", json={"kind": "calibration", "name": "mine", "files": files}).json()
    stranger.post("/v1/uploads", json={"kind": "calibration", "name": "theirs", "files": files})
    assert [item["id"] for item in caller.get("/v1/uploads").json()["items"]] == [mine["id"]]
    page = browser.get("/ui/models").text
    for wanted in ("tiny", "texts.txt", "pairs.json", "mine"):
        assert wanted in page, wanted
    assert "theirs" not in page
    send(browser, f"/ui/models/uploads/{mine['id']}/delete")
    assert caller.get(f"/v1/uploads/{mine['id']}").status_code == 404


class TestAccess:
    def test_an_admin_makes_and_revokes_keys(self, app: FastAPI, chief: Caller, admin: Caller) -> None:
        made = send(chief, "/ui/access/keys", tenant="fresh", name="ci", scopes=["jobs:read"])
        key = re.search(r"ofk_[\w-]+", made.text)
        assert key
        assert Caller(app, key[0]).get("/v1/jobs").status_code == 200
        assert key[0] not in chief.get("/ui/access").text
        entry = next(k for k in admin.get("/v1/keys").json()["items"] if k["tenant"] == "fresh")
        send(chief, f"/ui/access/keys/{entry['id']}/revoke")
        assert Caller(app, key[0]).get("/v1/jobs").status_code == 401

    def test_trust_rules_are_checked_made_and_deleted(self, chief: Caller, admin: Caller) -> None:
        rule = {"issuer": "https://ci.example.org", "audience": "optipfair", "scopes": ["jobs:read"]}
        wrong = send(chief, "/ui/access/trust", **rule | {"issuer": "http://ci.example.org"}, claims="a=b")
        assert wrong.status_code == 422
        assert "Not done" in wrong.text
        send(chief, "/ui/access/trust", **rule, claims="repository=acme/models")
        made = admin.get("/v1/trust").json()["items"]
        assert [item["claims"] for item in made] == [{"repository": "acme/models"}]
        assert "ci.example.org" in chief.get("/ui/access").text
        send(chief, f"/ui/access/trust/{made[0]['id']}/delete")
        assert admin.get("/v1/trust").json()["items"] == []

    def test_it_is_for_admins(self, browser: Caller) -> None:
        assert browser.get("/ui/access").status_code == 403
        assert "Access" not in browser.get("/").text
        assert send(browser, "/ui/access/keys", scopes=["admin"]).status_code == 403


@pytest.mark.parametrize("path", ["/ui/new", "/ui/compare", "/ui/system", "/ui/models", "/ui/access"])
def test_a_page_without_a_key_is_the_log_in_form_that_leads_back(
    nobody: Caller, make_key: Callable[..., str], path: str
) -> None:
    answer = nobody.get(path + "?id=1")
    assert answer.status_code == 401
    assert f'name="next" value="{path}?id=1"' in answer.text
    key = make_key("ops", "admin")
    login = send(nobody, "/ui/login", key=key, next=path + "?id=1")
    assert login.headers["Location"] == path + "?id=1"


class TestJson:
    def test_every_page_names_its_json(
        self, chief: Caller, admin: Caller, caller: Caller, worker: FakeWorker
    ) -> None:
        jobs = [caller.create(gates=GATES, labels={"team": "nlp"}) for _ in range(2)]
        for job in jobs:
            finish(worker, job, worker.claim(job["id"]))
        one, other = (job["id"] for job in jobs)
        pages = ["/", "/?label.team=nlp&kind=prune", f"/jobs/{one}", f"/ui/compare?id={one}&id={other}"]
        for page in [*pages, "/ui/models", "/ui/system", "/ui/access"]:
            footer = chief.get(page).text.partition("<footer")[2]
            paths = [unescape(path) for path in re.findall(r"<code>GET (/v1/[^<]+)</code>", footer)]
            assert paths, page
            for path in paths:
                answer = admin.get(path)
                assert (answer.status_code, answer.headers["Content-Type"]) == (200, "application/json"), path

    def test_the_state_of_the_service(
        self, caller: Caller, admin: Caller, stranger: Caller, worker: FakeWorker
    ) -> None:
        worker.run(caller.create()["id"])
        caller.create()
        mine = caller.get("/v1/system").json()
        assert [each["id"] for each in mine["workers"]] == [worker.id]
        # an autoscaler asks for queues that are empty, too
        assert {queue["name"]: queue["length"] for queue in mine["queues"]} == {
            "cpu": 0,
            "gpu": 0,
            "short": 1,
        }
        assert list(mine["kept_bytes"]) == ["acme"]
        assert len(mine["largest"]) == 1
        theirs = stranger.get("/v1/system").json()
        assert (theirs["kept_bytes"], theirs["largest"]) == ({"other": 0}, [])
        assert sum(queue["length"] for queue in theirs["queues"]) == 0
        assert admin.get("/v1/system").json()["kept_bytes"] == mine["kept_bytes"]

    def test_a_comparison(self, caller: Caller, worker: FakeWorker) -> None:
        jobs = [caller.create(spec={"pruning_percentage": share}) for share in (20, 30)]
        for job, ratio in zip(jobs, (1.2, 1.5), strict=True):
            worker.run(job["id"], metrics={"perplexity_ratio": ratio, "reload_check": "logits"})
        told = caller.get(f"/v1/jobs/{jobs[0]['id']}/comparison/{jobs[1]['id']}").json()
        assert told["jobs"] == [job["id"] for job in jobs]
        assert [(item["name"], item["first"], item["second"]) for item in told["spec"]] == [
            ("pruning_percentage", 20, 30)
        ]
        changes = {item["name"]: item["change"] for item in told["metrics"]}
        assert changes == {"perplexity_ratio": pytest.approx(0.25), "reload_check": None}


def test_one_can_go_on_from_the_error_curve_with_another_ratio(
    browser: Caller, reader: Caller, app: FastAPI, caller: Caller, worker: FakeWorker
) -> None:
    job = caller.create()
    finish(worker, job, worker.claim(job["id"]))
    page = browser.get(f"/jobs/{job['id']}").text
    links = [unescape(link) for link in re.findall(r'href="(/ui/new\?from=[^"]+&amp;size=\d+)"', page)]
    assert len(links) == 8
    form = browser.get(links[3]).text
    assert 'name="size" inputmode="decimal" value="40"' in form
    assert '<option value="pruning_percentage" selected>' in form
    visitor = Caller(app, None)
    visitor.post("/ui/login", content=f"key={reader.key}", headers=FORM)
    assert "Prune again" not in visitor.get(f"/jobs/{job['id']}").text


@pytest.mark.parametrize(
    ("path", "status", "said"),
    [
        ("/ui/access", 403, "lacks the scope admin"),
        ("/nonsense", 404, "There is no such page"),
        ("/ui/new?from=" + "x" * 99, 422, "could not be done"),
    ],
)
def test_who_asks_with_a_browser_is_refused_with_a_page(
    browser: Caller, path: str, status: int, said: str
) -> None:
    answer = browser.get(path, headers={"Accept": "text/html,*/*;q=0.8"})
    assert (answer.status_code, answer.headers["Content-Type"]) == (status, "text/html; charset=utf-8")
    assert said in unescape(answer.text)
    assert "Content-Security-Policy" in answer.headers
    assert browser.get(path).headers["Content-Type"] == "application/problem+json"
