"""Starting, starting twice, stopping, and dying: what is left behind, and who may read it."""

from __future__ import annotations

import json
import signal
import stat
import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import psutil
import pytest

from tests.tiny import write_tiny_llama

from .harness import Service, command, environment, gone, running, wait_for

pytestmark = [pytest.mark.server, pytest.mark.slow, pytest.mark.timeout(900)]
Start = Callable[..., AbstractContextManager[Service]]


def test_the_first_start_makes_a_key_that_only_its_owner_can_read(start: Start) -> None:
    with start() as service:
        key = (service.data_dir / "admin.key").read_text()
        assert key.startswith("ofk_") and key.endswith("\n")
        assert service.said.count(key.strip()) == 1
        for name in ("admin.key", "secret"):
            assert stat.S_IMODE((service.data_dir / name).stat().st_mode) == 0o600
        assert key.strip().encode() not in (service.data_dir / "service.db").read_bytes()
        logs = [path.read_bytes() for path in (service.data_dir / "logs").iterdir()]
        assert not any(key.strip().encode() in log for log in logs)
        tcp = [c for pid in service.pids() for c in psutil.Process(pid).net_connections("tcp")]
        assert {c.laddr.port for c in tcp if c.status == "LISTEN"} == {int(service.url.rsplit(":", 1)[1])}
    with start() as again:
        assert (again.data_dir / "admin.key").read_text() == key
        assert key.strip() not in again.said


def test_a_second_start_on_the_same_folder_is_refused_with_a_clear_error(service: Service) -> None:
    second = subprocess.run(
        command(service.data_dir), capture_output=True, text=True, env=environment(), timeout=60, check=False
    )
    assert second.returncode == 1
    assert "another optipfair-service" in second.stderr and str(service.process.pid) in second.stderr
    assert "Traceback" not in second.stderr
    assert service.client.get("/readyz").status_code == 200


def stop_in_mid_job(service: Service, number: int) -> tuple[str, int, bool]:
    """The job that was running, the exit code, and whether every process is gone."""
    job_id = service.post_job(labels={"test.engine": "hold:60"})
    service.wait_state(job_id, "running")
    wait_for(service.engine_pid, "the engine process")
    pids = service.pids()
    code = service.stop(number)
    return job_id, code, gone(pids, 5)


def test_ctrl_c_stops_everything_and_exits_zero(start: Start) -> None:
    with start() as service:
        _, code, all_gone = stop_in_mid_job(service, signal.SIGINT)
    assert code == 0 and all_gone


def test_a_job_goes_on_after_an_ordered_stop_and_the_attempt_does_not_count(start: Start) -> None:
    with start() as service:
        job_id, code, all_gone = stop_in_mid_job(service, signal.SIGTERM)
    assert code == 0 and all_gone
    with start() as service:
        service.client.post(f"/v1/jobs/{job_id}/cancel")
        service.wait_end(job_id)
        attempts = service.get(f"/v1/jobs/{job_id}/attempts")["items"]
        assert attempts[0]["outcome"] == "preempted"


def test_a_service_that_is_killed_leaves_no_process(start: Start) -> None:
    with start() as service:
        job_id = service.post_job(labels={"test.engine": "hold:60"})
        service.wait_state(job_id, "running")
        wait_for(service.engine_pid, "the engine process")
        pids = service.pids()
        service.process.kill()
        service.process.wait()
        assert gone(pids, 5)


def test_a_data_folder_with_a_long_path_still_gets_a_broker(tmp_path: Path) -> None:
    data_dir = tmp_path / ("long" * 25) / "data"
    data_dir.parent.mkdir()
    write_tiny_llama(data_dir / "models" / "tiny")
    with running(data_dir) as service:
        assert service.wait_end(service.post_job("analyze"))["state"] == "succeeded"


def test_the_commands_work_beside_a_running_service(service: Service) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        argv = [*command(service.data_dir)[:3], *arguments, "--data-dir", str(service.data_dir)]
        return subprocess.run(
            argv, capture_output=True, text=True, env=environment(), timeout=120, check=False
        )

    assert run("migrate").returncode == 0
    doctor = run("doctor")
    assert doctor.returncode == 0, doctor.stdout
    assert doctor.stdout.count("ok ") == 8
    created = run("keys", "create", "--tenant", "acme", "--scope", "jobs:read", "--name", "ci")
    key_id, key = created.stdout.split()
    answer = service.client.get("/v1/jobs", headers={"Authorization": f"Bearer {key}"})
    assert answer.status_code == 200
    listed = run("keys", "list").stdout
    assert key_id in listed and key not in listed
    assert run("keys", "revoke", key_id).returncode == 0

    def refused() -> bool:
        answer = service.client.get("/v1/jobs", headers={"Authorization": f"Bearer {key}"})
        return answer.status_code == 401

    # the server may trust a key that it has just seen for two seconds more
    wait_for(refused, "the revoked key to be refused")


def test_doctor_says_what_to_do_when_nothing_runs(tmp_path: Path) -> None:
    argv = [*command(tmp_path)[:3], "doctor", "--data-dir", str(tmp_path / "new")]
    done = subprocess.run(argv, capture_output=True, text=True, env=environment(), timeout=120, check=False)
    assert done.returncode == 1
    failing = [line for line in done.stdout.splitlines() if line.startswith("FAIL")]
    assert {line.split()[1] for line in failing} >= {"database", "schema", "broker", "models", "worker"}
    assert all(" — " in line for line in failing)
    assert not (tmp_path / "new").exists()


def test_doctor_leaves_a_data_folder_as_it_is(tmp_path: Path) -> None:
    def run(verb: str) -> None:
        argv = [*command(tmp_path)[:3], verb, "--data-dir", str(tmp_path / "data")]
        subprocess.run(argv, capture_output=True, env=environment(), timeout=120, check=False)

    run("migrate")
    before = sorted(tmp_path.rglob("*"))
    run("doctor")
    assert sorted(tmp_path.rglob("*")) == before != []


def test_settings_that_make_no_sense_are_refused_without_a_stack_trace(tmp_path: Path) -> None:
    env = {**environment(), "OPTIPFAIR_LEASE_SECONDS": "soon"}
    done = subprocess.run(
        command(tmp_path / "d"), capture_output=True, text=True, env=env, timeout=60, check=False
    )
    assert done.returncode == 1
    assert "lease_seconds" in done.stderr and "Traceback" not in done.stderr


def test_the_ready_line_is_true(service: Service) -> None:
    ready = service.client.get("/readyz")
    assert ready.status_code == 200, json.dumps(ready.json())
