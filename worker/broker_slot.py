"""The slot of a message is freed even when its broker cannot be told that the message is done with.

A worker fetches one message at a time: its channel has one slot, taken while a message is unacknowledged.
kombu's Redis transport (`kombu.transport.redis.QoS.ack` and `.reject`, kombu 5.7) first tells the server and
frees the slot after that. If the server is away just then, the first raises, Celery logs "Couldn't ack" and
goes on, and the slot stays taken for ever: the worker asks for no more messages, so it never meets the error
that would make it connect anew. It lives, beats, and takes no job again.

Freeing the slot loses nothing: the database says which jobs are done, a message only says "look at this job".
One that the server still holds as unacknowledged comes back after the visibility timeout, and whoever takes
it finds its job ended; one that was to be queued again is published again by the sweeper.

Acknowledging early, before the job runs, would not do: that call can fail in the same way, and where it works
the free slot fetches a second message, which waits behind a long job while other workers are idle.
"""

from __future__ import annotations

from typing import Any

from kombu.connection import Connection
from kombu.transport import redis, virtual


class SlotFreeingQoS(redis.QoS):
    """kombu's acknowledgements for Redis, but a failed one frees its slot too, and raises as before.

    Only failures free it here. In a `finally`, a slot freed twice could make room for a second message: the
    consuming thread may have taken the next one in between.
    """

    def ack(self, delivery_tag: str) -> None:
        """Tell the server that the message is done with; its slot is free afterwards in any case."""
        try:
            super().ack(delivery_tag)
        except BaseException:
            virtual.QoS.ack(self, delivery_tag)
            raise

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Drop the message or queue it again; its slot is free afterwards in any case."""
        try:
            super().reject(delivery_tag, requeue=requeue)
        except BaseException:
            virtual.QoS.ack(self, delivery_tag)
            raise


#: Seconds between tries to connect: the first, what each adds, the longest. Celery's own grow to 30 s, and a
#: broker that is back must have its workers back within a few.
RETRY_START, RETRY_STEP, RETRY_MAX = 0.5, 0.5, 3.0


class SlotFreeingConnection(Connection):
    """A connection whose channels free their slots, by whichever URL they reach Redis.

    A transport named by hand would stand for one kind of URL; those of redis://, rediss://, sentinel:// and
    redis+socket:// are all made here, also after a failover to another of several URLs.
    """

    def ensure_connection(self, *args: Any, **kwargs: Any) -> Any:
        """Try until there is a connection, as kombu does, but never wait long between two tries."""
        waits = {"interval_start": RETRY_START, "interval_step": RETRY_STEP, "interval_max": RETRY_MAX}
        return super().ensure_connection(*args, **{**waits, **kwargs})

    def create_transport(self) -> Any:
        """Create the transport, as kombu's, with `SlotFreeingQoS` in place of kombu's class for Redis."""
        transport = super().create_transport()
        kind = transport.Channel
        # Setting it on a channel is too late: Celery's event loop uses the first one's before handing it out.
        if kind.QoS is redis.QoS:
            transport.Channel = type(f"SlotFreeing{kind.__name__}", (kind,), {"QoS": SlotFreeingQoS})
        return transport
