"""The Celery side of a worker: takes messages from the queues, one at a time, for the supervisor."""

from __future__ import annotations

import os
import threading
from typing import Any

from celery import Celery, signals
from celery.exceptions import Reject

from jobs.queue import TASK_NAME, make_celery
from worker import test_hooks
from worker.attempt.supervisor import release_running
from worker.attempt.turns import run_next
from worker.broker_slot import SlotFreeingConnection
from worker.consumer import ConsumerHandle
from worker.log import logger
from worker.services import Services

#: After the grace period, for releasing the attempt and for Celery's own ending.
STOP_SECONDS = 8.0
#: Then this process ends itself, after at most so long an attempt to put its job back.
RELEASE_SECONDS = 1.5


def make_app(services: Services, consumer: ConsumerHandle) -> Celery:
    """The worker's Celery app. Threads, because children of a prefork worker may not start processes."""
    app = make_celery(services.settings)
    app.amqp.Connection = SlotFreeingConnection
    app.conf.update(
        worker_pool="threads",
        worker_concurrency=1,
        worker_prefetch_multiplier=1,
        task_acks_late=True,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        # A broker that went away says nothing about the running attempt: the claim in the database does.
        worker_cancel_long_running_tasks_on_connection_loss=False,
    )

    @app.task(  # type: ignore[untyped-decorator]  # celery has no types
        name=TASK_NAME, acks_late=True, ignore_result=True
    )
    def run(job_id: str, queue: str = "", **_: Any) -> None:
        if services.stopping.is_set():
            raise Reject("shutting down", requeue=True)
        with services.activity.working():
            ran = None
            try:
                ran = run_next(services, queue or _queue_of(services, job_id), job_id)
            except Exception:  # the message is done with either way: the sweeper brings the job back
                logger.exception("job.failed_in_supervisor", job_id=job_id)
            if test_hooks.after_job(services, ran or job_id, consumer):
                raise Reject("a test wants it", requeue=False)

    return app


def _queue_of(services: Services, job_id: str) -> str:
    """The queue of a message of an earlier release, which named the job alone."""
    return services.repository.get_job(job_id).queue


def _end_at_once(services: Services) -> None:
    release = threading.Thread(target=release_running, args=(services,), daemon=True)
    release.start()
    release.join(RELEASE_SECONDS)  # the database may be away too
    os._exit(0)


def run_worker(services: Services, consumer: ConsumerHandle) -> int:
    """Consume until SIGTERM; then no new claim, and the running attempt gets its grace period."""
    app = make_app(services, consumer)

    def note_shutdown(**_: Any) -> None:
        services.stopping.set()
        # Celery does not stop while it waits for a broker that is away, nor an attempt during a long upload.
        patience = services.settings.grace_seconds + STOP_SECONDS
        watchdog = threading.Timer(patience, _end_at_once, args=(services,))
        watchdog.daemon = True
        watchdog.start()

    def keep_our_logging(**_: Any) -> None:
        """Having a receiver is what keeps Celery from setting up logging its own way."""

    signals.worker_shutting_down.connect(note_shutdown, weak=False)
    signals.setup_logging.connect(keep_our_logging, weak=False)
    worker = app.Worker(
        hostname=f"{services.worker_id}@optipfair",
        queues=list(services.settings.queues),
        pool="threads",
        concurrency=1,
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
        loglevel="WARNING",
        quiet=True,
    )
    consumer.attach(worker)
    worker.start()
    return int(worker.exitcode or 0)
