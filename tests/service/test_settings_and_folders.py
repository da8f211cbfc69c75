"""What each child may know, where the broker's socket goes, and one service a data folder."""

from __future__ import annotations

import os
import re
import socket
import stat
from pathlib import Path

import pytest

from jobs.artifacts.local import LocalStore
from jobs.settings import Settings
from service import broker
from service.bootstrap import check_secret, write_private
from service.doctor import check_disk
from service.embedded import _worker, bind, settle, uses_embedded_broker
from service.environment import api_environment, worker_environment
from service.lock import AlreadyRunningError, DataFolderLock
from worker.memory import machine_memory


def test_a_worker_gets_the_settings_but_nothing_secret_of_the_api(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, lease_seconds=17, allow_hub=True)
    environ = {
        "OPTIPFAIR_SECRET_FILE": "/s",
        "OPTIPFAIR_API_KEY": "ofk_x",
        "OPTIPFAIR_TEST_HOOKS": "1",
        "HOME": "/h",
    }
    environment = worker_environment(settings, environ)
    assert not [name for name in environment if "SECRET_FILE" in name or "API_KEY" in name]
    assert "ofk_x" not in environment.values()
    assert environment["OPTIPFAIR_TEST_HOOKS"] == "1"
    assert environment["HOME"] == "/h"
    assert environment["OPTIPFAIR_LEASE_SECONDS"] == "17.0"
    assert environment["OPTIPFAIR_ALLOW_HUB"] == "true"


def test_the_workers_of_one_machine_share_its_cores_and_memory(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    share = _worker(settings, 0, 2).env
    assert int(share["OPTIPFAIR_MEMORY_BYTES"]) == machine_memory() // 2
    assert int(share["OPTIPFAIR_THREADS"]) == max(1, (os.cpu_count() or 1) // 2)
    stated = settings.model_copy(update={"memory_bytes": 123})
    assert _worker(stated, 0, 2).env["OPTIPFAIR_MEMORY_BYTES"] == "123"


def test_settings_survive_the_way_through_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(data_dir=tmp_path, port=4321, worker_queues="gpu", min_free_bytes=5)
    for name in [name for name in os.environ if name.startswith("OPTIPFAIR_")]:
        monkeypatch.delenv(name)
    for name, text in api_environment(settings, {}).items():
        monkeypatch.setenv(name, text)
    assert Settings().model_dump() == settings.model_dump()


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
    near = broker.socket_path(Path("/srv/optipfair"))
    far = broker.socket_path(tmp_path / ("x" * 120))
    assert near == Path("/srv/optipfair/broker/valkey.sock")
    assert len(os.fsencode(far)) < 104
    assert far == broker.socket_path(tmp_path / ("x" * 120))
    assert far != broker.socket_path(tmp_path / ("y" * 120))


def test_a_socket_folder_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PermissionError):
        broker.make_socket_folder(tmp_path / "link" / "v.sock")


def test_the_embedded_broker_is_used_unless_another_is_named(tmp_path: Path) -> None:
    assert uses_embedded_broker(broker.with_socket(Settings(data_dir=tmp_path)))
    other = Settings(data_dir=tmp_path, broker_url="redis://elsewhere:6379/0")
    assert not uses_embedded_broker(broker.with_socket(other))


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
