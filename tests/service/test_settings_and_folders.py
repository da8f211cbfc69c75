"""What each child may know, where the broker's socket goes, and one service a data folder."""

from __future__ import annotations

import json
import os
import re
import socket
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jobs.addresses import socket_path
from jobs.artifacts.local import LocalStore
from jobs.handover import FROM_STDIN, api_document, child_environment, worker_document
from jobs.settings import Settings, SettingsError, read_settings
from service import broker
from service.bootstrap import check_secret, write_private
from service.doctor import check_disk
from service.embedded import SHORT_SHARE, bind, settle, uses_embedded_broker, worker_specs
from service.lock import AlreadyRunningError, DataFolderLock
from worker.memory import machine_memory

from .harness import invoke


def test_a_worker_is_told_the_settings_but_nothing_secret_of_the_api(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, lease_seconds=17, allow_hub=True, secret_file=tmp_path / "s3cret")
    told = json.loads(worker_document(settings))
    assert set(Settings.model_fields) - set(told) == {
        "secret_file", "host", "port", "public_url", "allow_loopback_webhooks",
    }  # fmt: skip
    assert "s3cret" not in str(told)
    assert (told["lease_seconds"], told["allow_hub"]) == (17.0, True)


def test_no_child_inherits_settings_or_a_clients_key_in_its_environment() -> None:
    ours = {
        "OPTIPFAIR_SECRET_FILE": "/s",
        "OPTIPFAIR_KEY": "ofk_x",
        "OPTIPFAIR_DATABASE_URL": "postgresql://",
    }
    kept = {"OPTIPFAIR_TEST_HOOKS": "1", "HOME": "/h"}
    assert child_environment({**ours, **kept}) == kept


@pytest.mark.parametrize("module", ["worker", "service.api_process"])
def test_a_process_that_is_handed_its_settings_does_not_look_at_the_environment(
    module: str, tmp_path: Path
) -> None:
    settings = Settings(data_dir=tmp_path, artifacts_url="s3://bucket", log_format="console")
    document = json.dumps({**json.loads(api_document(settings)), "lease_seconds": "from the pipe"})
    environ = {**os.environ, "OPTIPFAIR_LEASE_SECONDS": "from the environment"}
    argv = [sys.executable, "-m", module, FROM_STDIN]
    done = subprocess.run(argv, input=document, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "from the pipe" in done.stderr and "from the environment" not in done.stderr


@pytest.mark.parametrize(
    "verb", ["serve", "api", "worker", "migrate", "doctor", "keys create", "keys list", "keys revoke 1"]
)
def test_every_command_names_the_variable_that_a_misspelt_one_may_have_meant(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "data"
    monkeypatch.delattr(os, "execve")  # a worker that was let through would take this process's place
    done = invoke(*verb.split(), "--data-dir", str(folder), OPTIPFAIR_LEASE_SECOND="5")
    assert done.exit_code == 1
    assert "OPTIPFAIR_LEASE_SECOND (the nearest is OPTIPFAIR_LEASE_SECONDS)" in done.stderr
    assert "Traceback" not in done.stderr
    assert not folder.exists()


@pytest.mark.parametrize("name", ["OPTIPFAIR_URL", "OPTIPFAIR_KEY", "OPTIPFAIR_TEST_DATA", "OPENAI_API_KEY"])
def test_variables_that_are_no_settings_of_ours_are_let_be(name: str, tmp_path: Path) -> None:
    assert read_settings({"data_dir": tmp_path}, {name: "x"}) == Settings(data_dir=tmp_path)


def test_flags_win_over_variables_and_these_over_defaults(tmp_path: Path) -> None:
    environ = {"OPTIPFAIR_PORT": "9001", "OPTIPFAIR_MODELS_DIR": "/models", "OPTIPFAIR_ALLOW_HUB": "true"}
    settings = read_settings({"data_dir": tmp_path, "port": 9002}, environ)
    assert settings == Settings(data_dir=tmp_path, port=9002, models_dir=Path("/models"), allow_hub=True)
    assert read_settings({}, environ).port == 9001


def test_secrets_may_lie_in_files(tmp_path: Path) -> None:
    (tmp_path / "url").write_text("redis://:pass@broker\n")
    (tmp_path / "password").write_text("pa:ss@\n")
    environ = {
        "OPTIPFAIR_BROKER_URL_FILE": str(tmp_path / "url"),
        "OPTIPFAIR_DATABASE_PASSWORD_FILE": str(tmp_path / "password"),
        "OPTIPFAIR_DATABASE_URL": "postgresql://me@db:5433/jobs?sslmode=require",
    }
    settings = read_settings({}, environ)
    assert settings.broker_url == "redis://:pass@broker"
    assert settings.database_url == "postgresql://me:pa%3Ass%40@db:5433/jobs?sslmode=require"


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"BROKER_URL_FILE": "/nowhere/to/be/found"}, "BROKER_URL_FILE names a file that can't be read"),
        ({"BROKER_URL_FILE": os.devnull}, "names an empty file"),
        ({"BROKER_URL_FILE": "x", "BROKER_URL": "redis://x"}, "are both set"),
        ({"DATABASE_PASSWORD": "x"}, "names no user"),
        ({"DATABASE_PASSWORD": "x", "DATABASE_URL": "postgresql://me:y@db/jobs"}, "has a password already"),
        ({"BROKER_URI_FILE": "x"}, "the nearest is OPTIPFAIR_BROKER_URL_FILE"),
    ],
)
def test_secrets_that_would_not_arrive_are_refused(environ: dict[str, str], said: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(said)):
        read_settings({}, {f"OPTIPFAIR_{name}": value for name, value in environ.items()})


def told_workers(settings: Settings) -> list[dict[str, Any]]:
    return [json.loads(spec.document) for specs in worker_specs(settings) for spec in specs]


def test_the_workers_of_one_machine_share_its_cores_and_memory(tmp_path: Path) -> None:
    first, second, short = told_workers(Settings(data_dir=tmp_path, workers=2))
    assert first == second
    assert first["threads"] == max(1, (os.cpu_count() or 1) // 2)
    assert first["worker_queues"] == "cpu,short"
    assert short["worker_queues"] == "short"
    assert short["threads"] == 1
    assert short["memory_bytes"] == machine_memory() // SHORT_SHARE
    together = first["memory_bytes"] + second["memory_bytes"] + short["memory_bytes"]
    assert machine_memory() - 3 <= together <= machine_memory()
    stated = told_workers(Settings(data_dir=tmp_path, memory_bytes=123, threads=5))
    assert [(worker["memory_bytes"], worker["threads"]) for worker in stated] == [(123, 5), (123, 1)]


def test_serve_can_do_without_a_worker_for_short_jobs(tmp_path: Path) -> None:
    (only,) = told_workers(Settings(data_dir=tmp_path, short_workers=0))
    assert only["memory_bytes"] == machine_memory()


def test_settings_survive_the_way_to_a_child(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, port=4321, worker_queues="gpu", memory_bytes=None)
    assert Settings.model_validate_json(api_document(settings)) == settings


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000"),
        ("prune.local", "http://prune.local:8000"),
        ("::1", "http://[::1]:8000"),
    ],
)
def test_urls_have_the_address_as_a_browser_takes_it(host: str, url: str) -> None:
    assert Settings(host=host, port=8000).public_url == url


@pytest.mark.parametrize(
    ("host", "reached_at"), [("0.0.0.0", "127.0.0.1"), ("::", "[::1]"), ("::1", "[::1]")]
)
def test_a_service_on_all_addresses_names_one_that_answers(
    tmp_path: Path, host: str, reached_at: str
) -> None:
    with bind(host, 0) as listener:
        settled = settle(Settings(data_dir=tmp_path, host=host), listener)
        assert settled.public_url == f"http://{reached_at}:{listener.getsockname()[1]}"
        family = socket.AF_INET6 if ":" in reached_at else socket.AF_INET
        with socket.socket(family) as client:
            client.connect((reached_at.strip("[]"), settled.port))


def test_a_heartbeat_that_comes_after_the_lease_is_refused() -> None:
    with pytest.raises(ValueError, match="heartbeat_seconds must be less than lease_seconds"):
        Settings(lease_seconds=7)


def test_the_doctor_sees_a_full_disk_of_results_beside_an_empty_scratch_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(data_dir=tmp_path, min_free_bytes=1000)
    assert check_disk(settings).well
    monkeypatch.setattr(LocalStore, "free_bytes", lambda _self: 999)
    assert not check_disk(settings).well


def test_a_second_holder_of_a_data_folder_is_told_who_holds_it(tmp_path: Path) -> None:
    with (
        DataFolderLock(tmp_path),
        pytest.raises(AlreadyRunningError, match=rf"process {os.getpid()}\).*--data-dir"),
        DataFolderLock(tmp_path),
    ):
        pass
    with DataFolderLock(tmp_path):
        pass  # free again


def test_the_brokers_socket_moves_when_the_data_folders_path_is_long(tmp_path: Path) -> None:
    near = socket_path(Path("/srv/optipfair"))
    far = socket_path(tmp_path / ("x" * 120))
    assert near == Path("/srv/optipfair/broker/valkey.sock")
    assert len(os.fsencode(far)) < 104
    assert far == socket_path(tmp_path / ("x" * 120))
    assert far != socket_path(tmp_path / ("y" * 120))


def test_a_socket_folder_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PermissionError):
        broker.make_socket_folder(tmp_path / "link" / "v.sock")


def test_the_embedded_broker_is_used_unless_another_is_named(tmp_path: Path) -> None:
    assert uses_embedded_broker(Settings(data_dir=tmp_path))
    other = Settings(data_dir=tmp_path, broker_url="redis://elsewhere:6379/0")
    assert not uses_embedded_broker(other)


def test_port_zero_becomes_the_real_port_everywhere(tmp_path: Path) -> None:
    with bind("127.0.0.1", 0) as listener:
        settings = settle(Settings(data_dir=tmp_path, port=0), listener)
        assert settings.port == listener.getsockname()[1] != 0
        assert settings.public_url == f"http://127.0.0.1:{settings.port}"
        with pytest.raises(OSError, match="--port"):
            bind("127.0.0.1", settings.port)


def test_secrets_are_for_their_owner_only(tmp_path: Path) -> None:
    write_private(tmp_path / "admin.key", "ofk_x\n")
    check_secret(tmp_path / "secret")
    for name in ("admin.key", "secret"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
    (tmp_path / "secret").chmod(0o644)
    with pytest.raises(PermissionError, match="chmod 600"):
        check_secret(tmp_path / "secret")


def test_every_setting_stands_on_the_page_of_operations() -> None:
    page = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    told = set(re.findall(r"`(?:OPTIPFAIR_)?([A-Z0-9_]+)`", page))
    assert {name.upper() for name in Settings.model_fields} - told == set()
