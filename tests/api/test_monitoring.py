"""What `/metrics` says beside gauges: right types, counted once, and never less than before."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from fastapi import FastAPI
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from api.context import Services
from api.monitoring.figures import of_totals
from jobs.repository.whole.totals import BEYOND, BOUNDS, Total, bound_of, note_of
from tests.api.conftest import Caller, FakeWorker, prune

MONITORING = Path(__file__).resolve().parents[2] / "deploy" / "monitoring"


def families(caller: Caller) -> dict[str, Metric]:
    return {family.name: family for family in text_string_to_metric_families(caller.get("/metrics").text)}


def values(family: Metric, *labels: str, end: str = "") -> dict[tuple[str, ...], float]:
    mine = [sample for sample in family.samples if sample.name == family.name + end]
    return {tuple(sample.labels[label] for label in labels): sample.value for sample in mine}


@pytest.fixture
def admin(app: FastAPI, make_key: Callable[..., str]) -> Caller:
    return Caller(app, make_key("acme", "admin"))


def test_every_figure_has_its_type(admin: Caller, worker: FakeWorker) -> None:
    worker.run(admin.create()["id"])
    found = {name: family.type for name, family in families(admin).items()}
    wanted = {
        **dict.fromkeys(("jobs_ended", "verdicts", "attempts_ended", "webhooks"), "counter"),
        **dict.fromkeys(("queue_wait_seconds", "run_seconds", "http_request_seconds"), "histogram"),
        **dict.fromkeys(("worker_up", "worker_busy", "worker_stalled", "queue_length"), "gauge"),
        **dict.fromkeys(("artifact_bytes", "disk_free_bytes", "build_info"), "gauge"),
    }
    assert {f"optipfair_{name}": kind for name, kind in wanted.items()}.items() <= found.items()


def test_ends_are_counted_and_stay_counted_when_the_jobs_are_deleted(
    admin: Caller, worker: FakeWorker, services: Services
) -> None:
    gates = [{"metric": "percentage_reduction", "min": 99}]
    judged = admin.post("/v1/jobs", json=prune(gates=gates)).json()["id"]
    worker.run(judged, metrics={"percentage_reduction": 5.0})
    failed = admin.create()["id"]
    claim = services.repository.claim(failed, worker.id)
    assert claim is not None
    assert values(families(admin)["optipfair_worker_busy"], "worker") == {(worker.id,): 1}
    services.repository.mark_failed(failed, claim.attempt, "x", "y")
    admin.post(f"/v1/jobs/{admin.create()['id']}/cancel")
    before = families(admin)
    assert values(before["optipfair_worker_busy"], "worker") == {(worker.id,): 0}
    ended = values(before["optipfair_jobs_ended"], "kind", "state", end="_total")
    assert ended == {("prune", state): 1 for state in ("succeeded", "failed", "cancelled")}
    assert values(before["optipfair_verdicts"], "verdict", end="_total") == {("fail",): 1}
    attempts = values(before["optipfair_attempts_ended"], "outcome", end="_total")
    assert attempts == {("succeeded",): 1, ("failed",): 1}
    assert sum(values(before["optipfair_queue_wait_seconds"], "queue", end="_count").values()) == 2
    for job_id in (judged, failed):
        assert admin.delete(f"/v1/jobs/{job_id}").status_code == 204
    after = families(admin)
    for name in ("jobs_ended", "verdicts", "attempts_ended", "run_seconds", "queue_wait_seconds"):
        assert after[f"optipfair_{name}"].samples == before[f"optipfair_{name}"].samples


def test_a_tenant_sees_what_is_its_own(
    app: FastAPI, make_key: Callable[..., str], admin: Caller, worker: FakeWorker
) -> None:
    ours, theirs = Caller(app, make_key()), Caller(app, make_key("other"))
    worker.run(theirs.create()["id"], files={"a.bin": b"12345"})
    worker.run(ours.create()["id"], files={"a.bin": b"123"})
    sizes = [values(families(who)["optipfair_artifact_bytes"], "tenant") for who in (ours, theirs, admin)]
    assert sizes == [{("acme",): 3}, {("other",): 5}, {("acme",): 3, ("other",): 5}]
    ended = [values(families(who)["optipfair_jobs_ended"], "state", end="_total") for who in (ours, admin)]
    assert ended == [{("succeeded",): 1}, {("succeeded",): 2}]
    assert "optipfair_disk_free_bytes" not in families(ours)


def test_folding_changes_no_sum(services: Services) -> None:
    repository = services.repository
    with repository._write() as connection:
        for number in range(600):
            note_of(connection, "attempt", "acme", "lost", kind="prune", milliseconds=number * 1000)
    before = sorted(repository.totals(), key=lambda total: total.bound)
    assert repository.fold_totals() == 600 - len(before)
    assert sorted(repository.totals(), key=lambda total: total.bound) == before
    assert sum(total.number for total in before) == 600
    assert repository.fold_totals() == 0


def test_buckets_are_cumulative_and_hold_everything() -> None:
    times = [0.2, 1, 1.1, 3600, 100_000]
    totals = [Total("attempt", "prune", "succeeded", bound_of(s), 1, s) for s in times]
    (family,) = [family for family in of_totals(totals) if family.name == "optipfair_run_seconds"]
    buckets = [s.value for s in family.samples if s.name.endswith("_bucket")]
    assert buckets == sorted(buckets) and len(buckets) == len(BOUNDS) + 1
    assert (buckets[0], buckets[1], buckets[-1]) == (2, 3, 5)
    assert bound_of(times[-1]) == BEYOND
    assert [s.value for s in family.samples if s.name.endswith("_sum")] == [sum(times)]


def made_dashboard() -> Any:
    spec = importlib.util.spec_from_file_location("dashboard", MONITORING / "dashboard.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_dashboard_is_what_its_script_writes_and_its_panels_do_not_overlap() -> None:
    module = made_dashboard()
    assert module.TARGET.read_text() == module.render(), "run: python deploy/monitoring/dashboard.py"
    taken: set[tuple[int, int]] = set()
    for panel in json.loads(module.render())["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not taken & cells and all(x < 24 for x, _ in cells)
        taken |= cells


def test_dashboard_and_alerts_name_only_figures_that_there_are(admin: Caller, worker: FakeWorker) -> None:
    worker.run(admin.create()["id"])
    admin.create()
    text = admin.get("/metrics").text
    rules = yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"][0]["rules"]
    asked = [*made_dashboard().queries(), *(rule["expr"] for rule in rules)]
    named = {name.removesuffix("_bucket") for query in asked for name in re.findall(r"optipfair_\w+", query)}
    assert len(named) > 10
    assert {name for name in named if f"# TYPE {name} " not in text} == set()


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool (Debian's prometheus) is not here")
def test_the_alerts_fire_when_they_should_and_not_before() -> None:
    done = subprocess.run(
        ["promtool", "test", "rules", "alerts_test.yml"],
        cwd=MONITORING,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
