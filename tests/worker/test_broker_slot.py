"""A broker that is away when a message ends costs that message's acknowledgement, never the worker's slot."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import redis
from celery import Celery
from kombu import Consumer, Message
from kombu.asynchronous import Hub
from kombu.exceptions import OperationalError
from kombu.transport import redis as transport

from jobs.settings import Settings
from tests import servers
from worker.app import make_app
from worker.broker_slot import RETRY_MAX, SlotFreeingConnection, SlotFreeingQoS
from worker.consumer import ConsumerHandle
from worker.services import Services

ENDINGS: dict[str, Callable[[Any, str], None]] = {
    "ack": lambda qos, tag: qos.ack(tag),
    "reject": lambda qos, tag: qos.reject(tag),
    "requeue": lambda qos, tag: qos.reject(tag, requeue=True),
}
every_ending = pytest.mark.parametrize("ending", list(ENDINGS.values()), ids=list(ENDINGS))


class Away:
    """Stands in for a Redis client whose server does not answer."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def pipeline(self) -> Away:
        return self

    def zrem(self, *_: object) -> Away:
        return self

    hdel = zrem

    def execute(self) -> None:
        raise self._error

    def transaction(self, *_: object) -> None:
        raise self._error


class AwayChannel:
    """As much of a channel as its acknowledgements need."""

    unacked_key, unacked_index_key = "unacked", "unacked_index"
    do_restore = False

    def __init__(self, error: Exception) -> None:
        self._client = Away(error)

    @contextmanager
    def conn_or_acquire(self, _client: object = None) -> Iterator[Away]:
        yield self._client


def holding_one(channel: object) -> SlotFreeingQoS:
    """A QoS with one slot, taken by message 1."""
    qos = SlotFreeingQoS(channel, prefetch_count=1)
    transport.virtual.QoS.append(qos, object(), "1")
    assert not qos.can_consume()
    return qos


@every_ending
@pytest.mark.parametrize(
    "error",
    [
        redis.exceptions.ConnectionError("refused"),
        redis.exceptions.TimeoutError("timed out"),
        redis.exceptions.ReadOnlyError("a replica after a failover"),
        BrokenPipeError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_the_slot_is_free_after_a_failure_which_is_still_raised(
    ending: Callable[[Any, str], None], error: Exception
) -> None:
    qos = holding_one(AwayChannel(error))
    with pytest.raises(type(error)):
        ending(qos, "1")
    assert qos.can_consume()
    transport.virtual.QoS.append(qos, object(), "2")
    assert not qos.can_consume()  # one slot, not two


class Answering(Away):
    """A Redis that answers; before it does, the consuming thread has taken message 2."""

    def execute(self) -> None:
        return None

    def transaction(self, *_: object) -> None:
        return None


@every_ending
def test_a_slot_is_not_freed_twice(
    ending: Callable[[Any, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    channel = AwayChannel(OSError())
    channel._client = Answering(OSError())
    qos = holding_one(channel)
    free = qos._quick_ack

    def free_and_take_the_next(tag: str) -> None:
        free(tag)
        monkeypatch.setattr(qos, "_quick_ack", free)
        transport.virtual.QoS.append(qos, object(), "2")

    monkeypatch.setattr(qos, "_quick_ack", free_and_take_the_next)
    ending(qos, "1")
    assert not qos.can_consume()


def app_for(services: Services, url: str, tmp_path: Path) -> Celery:
    changed = replace(services, settings=Settings(data_dir=tmp_path, broker_url=url))
    return make_app(changed, ConsumerHandle())


@pytest.fixture
def broker() -> Iterator[servers.Valkey]:
    with servers.valkey() as server:
        yield server


def outage(server: servers.Valkey, kind: str) -> Callable[[], None]:
    """Begin an outage; what ends it."""
    assert server.process is not None
    if kind == "killed":
        server.stop(signal.SIGKILL)
        return server.start
    os.kill(server.process.pid, signal.SIGSTOP)
    return lambda: server.restart(how=signal.SIGKILL)


@pytest.mark.server
@every_ending
@pytest.mark.parametrize("kind", ["killed", "frozen"])
def test_the_workers_channel_has_its_slot_free_after_an_outage(
    ending: Callable[[Any, str], None],
    kind: str,
    services: Services,
    broker: servers.Valkey,
    tmp_path: Path,
) -> None:
    app = app_for(services, broker.url, tmp_path)
    took: list[Message] = []
    options = {"socket_timeout": 1.0}  # so that the call to a frozen server ends
    with app.connection_for_read(transport_options=options) as connection:
        channel = connection.default_channel
        producer, queue = connection.Producer(), app.amqp.queues["cpu"]
        consumer = Consumer(channel, [queue], on_message=took.append)
        consumer.qos(prefetch_count=1)
        consumer.consume()
        producer.publish({"n": 1}, routing_key="cpu", declare=[queue])
        connection.drain_events(timeout=10)
        end_outage = outage(broker, kind)
        with pytest.raises(connection.recoverable_connection_errors):
            ending(channel.qos, took[0].delivery_tag)
        end_outage()
        assert channel.qos.can_consume()


URLS = ["redis://127.0.0.1:{port}/0", "redis+socket://{socket}", "sentinel://127.0.0.1:{port}/0"]


@pytest.mark.server
@pytest.mark.parametrize("url", URLS)
def test_channels_of_every_kind_of_url_free_their_slots(
    url: str, services: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = servers.free_port()
    monkeypatch.setattr(
        transport.SentinelChannel, "_get_pool", transport.Channel._get_pool
    )  # no sentinel runs here: its channel reaches the server directly
    monkeypatch.setattr(transport.SentinelChannel, "connection_class", redis.Connection)
    with servers.valkey() as server:
        server.stop()
        server.options += ["--port", str(port)]
        server.start()
        full = url.format(port=port, socket=quote(str(server.socket)))
        app = app_for(services, full, tmp_path)
        for connection in (app.connection_for_read(), app.connection_for_read().clone()):
            with connection:
                # as Celery's consumer does, which uses the first channel before it asks for one
                connection.transport.register_with_event_loop(connection.connection, Hub())
                assert type(connection.default_channel.qos) is SlotFreeingQoS
                assert type(connection.channel().qos) is SlotFreeingQoS


def test_a_broker_that_is_back_is_not_waited_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kombu.utils.functional.sleep", lambda _seconds: None)
    waits: list[float] = []
    connection = SlotFreeingConnection("redis://127.0.0.1:1/0")
    with pytest.raises(OperationalError):
        connection.ensure_connection(lambda _error, seconds: waits.append(seconds), max_retries=12)
    assert waits == sorted(waits)
    assert max(waits) == RETRY_MAX
