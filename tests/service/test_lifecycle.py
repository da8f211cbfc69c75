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
from click.testing import Result

from tests.tiny import write_tiny_llama

from .harness import Service, command, environment, gone, invoke, running, wait_for

pytestmark = [
    pytest.mark.server,
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.xdist_group("service"),
]
Start = Callable[..., AbstractContextManager[Service]]


def check_first_start(service: Service) -> str:
    """The admin key, which is told once and which only its owner can read."""
    key = (service.data_dir / "admin.key").read_text().strip()
    assert key.startswith("ofk_")
    assert service.said.count(key) == 1
    for name in ("admin.key", "secret"):
        assert stat.S_IMODE((service.data_dir / name).stat().st_mode) == 0o600
    assert key.encode() not in (service.data_dir / "service.db").read_bytes()
    logs = [path.read_bytes() for path in (service.data_dir / "logs").iterdir()]
    assert not any(key.encode() in log for log in logs)
    tcp = [c for pid in service.pids() for c in psutil.Process(pid).net_connections("tcp")]
    assert {c.laddr.port for c in tcp if c.status == "LISTEN"} == {int(service.url.rsplit(":", 1)[1])}
    return key


def run_a_job(service: Service) -> tuple[str, list[int]]:
    """A job that is held while it runs, and the processes that there are then."""
    job_id = service.post_job(labels={"test.engine": "hold:60"})
    service.wait_state(job_id, "running")
    wait_for(service.engine_pid, "the engine process")
    return job_id, service.pids()


def test_an_ordered_stop_leaves_no_process_and_the_next_start_goes_on(start: Start) -> None:
    """The key stays, and the attempt that was cut short does not count; Ctrl-C is an ordered stop, too."""
    with start() as service:
        key = check_first_start(service)
        job_id, pids = run_a_job(service)
        assert service.stop(signal.SIGTERM) == 0
        assert gone(pids, 5)
    with start() as again:
        assert (again.data_dir / "admin.key").read_text() == f"{key}\n"
        assert key not in again.said
        again.client.post(f"/v1/jobs/{job_id}/cancel")
        again.wait_end(job_id)
        attempts = again.get(f"/v1/jobs/{job_id}/attempts")["items"]
        assert attempts[0]["outcome"] == "preempted"
        _, pids = run_a_job(again)
        assert again.stop(signal.SIGINT) == 0
        assert gone(pids, 5)


def test_a_service_in_a_folder_with_a_long_path_works_and_leaves_no_process_when_it_is_killed(
    tmp_path: Path,
) -> None:
    data_dir = tmp_path / ("long" * 25) / "data"  # too long for the broker's socket
    data_dir.parent.mkdir()
    write_tiny_llama(data_dir / "models" / "tiny")
    with running(data_dir) as service:
        assert service.wait_end(service.post_job("analyze"))["state"] == "succeeded"
        _, pids = run_a_job(service)
        service.process.kill()
        service.process.wait()
        assert gone(pids, 5)


def test_a_second_start_on_the_same_folder_is_refused_with_a_clear_error(service: Service) -> None:
    second = subprocess.run(
        command(service.data_dir), capture_output=True, text=True, env=environment(), timeout=60, check=False
    )
    assert second.returncode == 1
    assert "another optipfair-service" in second.stderr and str(service.process.pid) in second.stderr
    assert "Traceback" not in second.stderr
    ready = service.client.get("/readyz")  # the ready line is true, and the first service unharmed
    assert ready.status_code == 200, json.dumps(ready.json())


def test_the_commands_work_beside_a_running_service(service: Service) -> None:
    def run(*arguments: str) -> Result:
        return invoke(*arguments, "--data-dir", str(service.data_dir))

    assert run("migrate").exit_code == 0
    doctor = run("doctor")
    assert doctor.exit_code == 0, doctor.stdout
    assert doctor.stdout.count("ok ") == 8
    created = run("keys", "create", "--tenant", "acme", "--scope", "jobs:read", "--name", "ci")
    key_id, key = created.stdout.split()
    answer = service.client.get("/v1/jobs", headers={"Authorization": f"Bearer {key}"})
    assert answer.status_code == 200
    listed = run("keys", "list").stdout
    assert key_id in listed and key not in listed
    assert run("keys", "revoke", key_id).exit_code == 0

    def refused() -> bool:
        answer = service.client.get("/v1/jobs", headers={"Authorization": f"Bearer {key}"})
        return answer.status_code == 401

    # the server may trust a key that it has just seen for two seconds more
    wait_for(refused, "the revoked key to be refused")


def test_doctor_says_what_to_do_when_nothing_runs(tmp_path: Path) -> None:
    done = invoke("doctor", "--data-dir", str(tmp_path / "new"))
    assert done.exit_code == 1
    failing = [line for line in done.stdout.splitlines() if line.startswith("FAIL")]
    assert {line.split()[1] for line in failing} >= {"database", "schema", "broker", "models", "worker"}
    assert all(" — " in line for line in failing)
    assert not (tmp_path / "new").exists()


def test_doctor_leaves_a_data_folder_as_it_is(tmp_path: Path) -> None:
    folder = ("--data-dir", str(tmp_path / "data"))
    assert invoke("migrate", *folder).exit_code == 0
    before = sorted(tmp_path.rglob("*"))
    # in a process of its own: what it leaves is what there is when it has ended
    argv = [*command(tmp_path)[:3], "doctor", *folder]
    subprocess.run(argv, capture_output=True, env=environment(), timeout=120, check=False)
    assert sorted(tmp_path.rglob("*")) == before != []


def test_settings_that_make_no_sense_are_refused_without_a_stack_trace(tmp_path: Path) -> None:
    done = invoke("serve", "--data-dir", str(tmp_path / "d"), OPTIPFAIR_LEASE_SECONDS="soon")
    assert done.exit_code == 1
    assert "lease_seconds" in done.stderr and "Traceback" not in done.stderr
