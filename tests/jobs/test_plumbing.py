"""Ids, times, settings, logs, the database's set-up and the broker."""

from __future__ import annotations

import errno
import io
import json
import logging
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from kombu.exceptions import OperationalError
from sqlalchemy import Engine, text
from sqlalchemy.exc import SQLAlchemyError

from jobs.database import connect
from jobs.ids import is_id, lowest_id_at, new_id
from jobs.logs import configure_logging
from jobs.queue import TASK_NAME, Publisher, make_celery
from jobs.repository import Repository
from jobs.rows import OutboxEntry
from jobs.settings import Settings
from jobs.times import from_rfc3339, rfc3339
from tests.servers import Valkey, valkey


def test_ids_sort_by_time_and_are_recognised() -> None:
    ids = [new_id() for _ in range(2000)]
    assert ids == sorted(ids)
    assert all(is_id(item) for item in ids)
    now = time.time_ns() // 1_000_000
    assert lowest_id_at(now - 60_000) < ids[0] < lowest_id_at(now + 60_000)
    assert is_id(lowest_id_at(now))
    for text_ in ("", ids[0].upper(), ids[0] + "\n", ids[0].replace("-", ""), "../" + ids[0]):
        assert not is_id(text_)


def test_times_survive_the_wire() -> None:
    assert rfc3339(1_795_000_000_007) == "2026-11-18T11:06:40.007Z"
    assert from_rfc3339(rfc3339(1_795_000_000_007)) == 1_795_000_000_007
    assert from_rfc3339("2026-11-18T12:06:40+01:00") == 1_795_000_000_000
    with pytest.raises(ValueError, match="zone"):
        from_rfc3339("2026-11-18T12:06:40")


@pytest.mark.parametrize("text_", ["9999-12-31T23:59:59-12:00", "0001-01-01T00:00:00+01:00"])
def test_a_time_outside_the_calendar_is_no_time(text_: str) -> None:
    with pytest.raises(ValueError, match="between the years"):
        from_rfc3339(text_)


@pytest.mark.parametrize("milliseconds", [2**63 - 1, -(2**63)])
def test_no_number_in_a_row_breaks_a_list(milliseconds: int) -> None:
    assert rfc3339(milliseconds).endswith("Z")


class TestSettings:
    def test_everything_follows_from_the_data_folder(self, tmp_path: Path) -> None:
        settings = Settings(data_dir=tmp_path, port=8123)
        assert settings.database_url == f"sqlite:///{tmp_path}/service.db"
        assert settings.broker_url == f"redis+socket://{tmp_path}/broker/valkey.sock"
        assert settings.models_dir == tmp_path / "models"
        assert settings.public_url == "http://127.0.0.1:8123"

    def test_secrets_do_not_show(self, tmp_path: Path) -> None:
        settings = Settings(data_dir=tmp_path, artifacts_s3_secret_key="hunter2")
        assert "hunter2" not in repr(settings)


class TestDatabase:
    def test_sqlite_is_set_up_for_safety(self, tmp_path: Path) -> None:
        engine = connect(f"sqlite:///{tmp_path / 'x.db'}")
        with engine.connect() as connection:
            values = {
                name: connection.execute(text(f"PRAGMA {name}")).scalar_one()
                for name in ("journal_mode", "foreign_keys", "synchronous", "busy_timeout")
            }
        engine.dispose()
        assert values == {"journal_mode": "wal", "foreign_keys": 1, "synchronous": 2, "busy_timeout": 30_000}

    def test_the_databases_clock_is_right(self, repository: Repository) -> None:
        assert abs(repository.now() - time.time() * 1000) < 5_000

    def test_other_databases_are_refused(self) -> None:
        with pytest.raises(ValueError, match="mysql"):
            connect("mysql://localhost/x")

    def test_a_failed_transaction_leaves_nothing(self, repository: Repository, engine: Engine) -> None:
        with pytest.raises(RuntimeError), engine.begin() as connection:
            connection.execute(text("INSERT INTO tenants VALUES ('x', 's', 1, 1)"))
            raise RuntimeError
        with engine.connect() as connection:
            assert connection.execute(text("SELECT count(*) FROM tenants WHERE name = 'x'")).scalar_one() == 0

    def test_ping_tells_a_database_that_answers_from_one_that_does_not(
        self, repository: Repository, tmp_path: Path
    ) -> None:
        repository.ping()
        with pytest.raises(SQLAlchemyError):
            Repository(connect(f"sqlite:///{tmp_path}/no/such/folder.db"), repository.settings).ping()


class TestLogs:
    def lines(self, tmp_path: Path, *, log_format: str = "json") -> tuple[io.StringIO, Settings]:
        return io.StringIO(), Settings(data_dir=tmp_path, log_format=log_format)

    @pytest.fixture(autouse=True)
    def restored(self) -> Iterator[None]:
        root = logging.getLogger()
        before = (list(root.handlers), root.level)
        yield
        root.handlers[:], level = before[0], before[1]
        root.setLevel(level)
        structlog.reset_defaults()

    def test_a_line_is_json_with_ids_and_level(self, tmp_path: Path) -> None:
        stream, settings = self.lines(tmp_path)
        configure_logging(settings, "api", stream=stream)
        with structlog.contextvars.bound_contextvars(request_id="r1"):
            structlog.get_logger("jobs").info("claimed", job_id="j1", attempt=2)
        # not uvicorn's logger: a server that another test ran in this process may have cut it off
        logging.getLogger("some.library").warning("plain %s", "text")
        first, second = (json.loads(line) for line in stream.getvalue().splitlines())
        assert (first["event"], first["job_id"], first["request_id"]) == ("claimed", "j1", "r1")
        assert (first["level"], first["process"], first["logger"]) == ("info", "api", "jobs")
        assert second["event"] == "plain text"

    def test_a_full_disk_costs_lines_and_nothing_else(self, tmp_path: Path) -> None:
        class Disk(io.StringIO):
            full = True

            def write(self, text: str) -> int:
                if self.full:
                    raise OSError(errno.ENOSPC, "No space left on device")
                return super().write(text)

        stream, (_, settings) = Disk(), self.lines(tmp_path)
        configure_logging(settings, "api", stream=stream)
        structlog.get_logger("jobs").warning("lost")
        logging.getLogger("some.library").warning("lost")
        stream.full = False
        structlog.get_logger("jobs").warning("kept")
        assert [json.loads(line)["event"] for line in stream.getvalue().splitlines()] == ["kept"]

    @pytest.mark.parametrize("log_format", ["json", "console"])
    def test_no_key_token_password_or_prompt_gets_into_a_line(self, tmp_path: Path, log_format: str) -> None:
        stream, settings = self.lines(tmp_path, log_format=log_format)
        configure_logging(settings, stream=stream)
        log = structlog.get_logger("x")
        log.info("GET /v1/download/abc.DEF-ghi/model.bin", authorization="Bearer ofk_" + "s" * 43)
        log.info("url", url="postgresql://user:hunter2@db/x", nested={"prompts": ["The hidden man"]})
        logging.getLogger("y").info("key ofk_%s and whsec_%s", "t" * 43, "u" * 44)
        try:
            raise ValueError("ofk_" + "v" * 43)
        except ValueError:
            log.exception("failed", texts=["hidden text"])
        out = stream.getvalue()
        for secret in ("DEF-ghi", "sss", "ttt", "uuu", "vvv", "hunter2", "hidden"):
            assert secret not in out, secret
        assert "ValueError" in out
        assert "/model.bin" in out


def entry(job_id: str, queue: str = "cpu", priority: int = 0) -> OutboxEntry:
    return OutboxEntry(id=1, job_id=job_id, queue=queue, priority=priority, traceparent=None)


@pytest.mark.server
class TestBroker:
    @pytest.fixture(scope="class")
    def broker(self) -> Iterator[Valkey]:
        with valkey() as server:
            yield server

    def test_a_message_names_a_queue_and_a_job_in_json(self, broker: Valkey, tmp_path: Path) -> None:
        settings = Settings(data_dir=tmp_path, broker_url=broker.url)
        publisher = Publisher(settings)
        publisher.ping()
        publisher.publish(entry("first"))
        publisher.publish(entry("urgent", priority=100))  # of some tenant: the claim minds it, not the broker
        publisher.close()
        with make_celery(settings).connection_for_read() as connection:
            queue = connection.SimpleQueue("cpu")
            messages = [queue.get(timeout=5) for _ in range(2)]
            for message in messages:
                message.ack()
            queue.close()
        assert [message.payload[0] for message in messages] == [["first"], ["urgent"]]
        assert [message.payload[1] for message in messages] == [{"queue": "cpu"}] * 2
        assert {message.content_type for message in messages} == {"application/json"}
        assert {message.headers["task"] for message in messages} == {TASK_NAME}

    def test_a_silent_broker_is_an_error_and_soon(self, tmp_path: Path) -> None:
        with valkey() as server:
            publisher = Publisher(Settings(data_dir=tmp_path, broker_url=server.url))
            publisher.publish(entry("a"))
            server.stop()
            with pytest.raises((OperationalError, OSError)):
                publisher.publish(entry("b"))
            server.start()
            publisher.publish(entry("c"))
            publisher.close()

    def test_an_address_that_never_answers_does_not_hold_the_publisher(self, tmp_path: Path) -> None:
        with socket.socket() as deaf:
            deaf.bind(("127.0.0.1", 0))
            deaf.listen(1)
            url = f"redis://127.0.0.1:{deaf.getsockname()[1]}/0"
            with pytest.raises((OperationalError, OSError)):
                Publisher(Settings(data_dir=tmp_path, broker_url=url)).publish(entry("a"))
