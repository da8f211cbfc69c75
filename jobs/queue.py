"""The broker's side: queue names, the one task, and the Celery app that producers and workers share.

A message says "there is work in this queue", nothing else; it may be lost, or come twice, or late. Which job
that is, the worker that takes it asks the database: tenants take turns. So all messages have one priority.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from jobs.patience import BROKER_ANSWER_SECONDS, BROKER_CHECK_SECONDS, BROKER_CONNECT_SECONDS
from jobs.rows import OutboxEntry
from jobs.settings import Settings

if TYPE_CHECKING:
    from celery import Celery

TASK_NAME = "optipfair.run_job"
SHORT = "short"
QUEUES = (SHORT, "cpu", "gpu")
"""`short`: about a minute on a CPU at most (analyses, static pruning of small models); `cpu`: long work on a
CPU; `gpu`: work on a CUDA device."""
PRIORITY_STEPS = list(range(10))
"""Of the broker; all are read, because an earlier release wrote to all."""
MESSAGE_PRIORITY = 4


def make_celery(settings: Settings, *, producer: bool = False) -> Celery:
    """A Celery app for `settings.broker_url` (redis:// or redis+socket://), configured the same everywhere.

    JSON only, results ignored, messages acknowledged late and fetched one at a time. A killed worker's
    message comes back within about ten seconds instead of kombu's hundred. Whoever asks a silent broker gives
    up after a few seconds; a `producer` does not even try again: the outbox does.

    The time limit of answers does not end a worker's long wait for a message (BRPOP), which reads only what
    has come. That wait asks for an answer every second; one that is overdue is looked for every few seconds,
    so that a half-open connection is given up within `brpop_timeout + 2 * health_check_interval`.
    """
    from celery import Celery  # a fifth of a second, which an API process spends once it listens
    from kombu.entity import Queue

    app = Celery("optipfair", broker=settings.broker_url, set_as_current=False)
    options: dict[str, Any] = {
        "visibility_timeout": 3600,
        "unacked_restore_interval": 1,
        "unacked_restore_throttle": 1,
        "priority_steps": PRIORITY_STEPS,
        "queue_order_strategy": "priority",
        "socket_keepalive": True,
        "socket_connect_timeout": BROKER_CONNECT_SECONDS,
        "socket_timeout": BROKER_ANSWER_SECONDS,
        "health_check_interval": BROKER_CHECK_SECONDS,
    }
    if producer:
        options["max_retries"] = 0
    app.conf.update(
        accept_content=["json"],
        task_serializer="json",
        result_serializer="json",
        event_serializer="json",
        task_ignore_result=True,
        task_store_errors_even_if_ignored=False,
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        task_create_missing_queues=False,
        task_queues=[Queue(name) for name in QUEUES],  # type: ignore[no-untyped-call]
        task_default_queue="cpu",
        task_track_started=False,
        worker_prefetch_multiplier=1,
        worker_send_task_events=False,
        worker_enable_remote_control=False,
        broker_transport_options=options,
        broker_connection_timeout=BROKER_CONNECT_SECONDS,
        enable_utc=True,
    )
    return app


class Publisher:
    """Publishes due messages; one a process, safe to share by threads.

    Celery is loaded by the first message or ping.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    @cached_property
    def _app(self) -> Celery:
        return make_celery(self._settings, producer=True)

    def publish(self, entry: OutboxEntry) -> None:
        """Send one message. Raises kombu's OperationalError if the broker does not take it."""
        headers = {} if entry.traceparent is None else {"traceparent": entry.traceparent}
        self._app.send_task(
            TASK_NAME,
            args=[entry.job_id],
            kwargs={"queue": entry.queue},
            queue=entry.queue,
            priority=MESSAGE_PRIORITY,
            headers=headers,
            retry=False,
            ignore_result=True,
        )

    def ping(self) -> None:
        """Raises kombu's OperationalError if the broker does not answer."""
        with self._app.connection_for_write() as connection:
            connection.ensure_connection(max_retries=0, timeout=BROKER_CONNECT_SECONDS)
            connection.default_channel.client.ping()

    def waiting(self, queues: Sequence[str]) -> int:
        """How many messages wait in these queues. Raises kombu's OperationalError as `ping` does."""
        with self._app.connection_for_read() as connection:
            connection.ensure_connection(max_retries=0, timeout=BROKER_CONNECT_SECONDS)
            return sum(_length(connection.default_channel, queue) for queue in queues)

    def close(self) -> None:
        """Close the connections."""
        if "_app" in self.__dict__:
            self._app.close()


def _length(channel: Any, queue: str) -> int:
    from kombu.exceptions import ChannelError  # see make_celery

    try:
        return int(channel.queue_declare(queue, passive=True).message_count)
    except ChannelError:  # Redis has no list for an empty queue
        return 0
