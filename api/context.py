"""What the handlers share: made once by the app factory, reached through a dependency, never global."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, ParamSpec, TypeVar

from fastapi import Depends, Request
from sqlalchemy import Engine
from starlette.concurrency import run_in_threadpool

from api.auth import Authenticator, Principal
from api.dashboard.feeds import Feeds
from api.observability import HttpMetrics
from api.tokens.issuers import Issuers
from api.waiting.notifier import Notifier
from jobs.artifacts import ArtifactStore
from jobs.queue import Publisher
from jobs.repository import Repository
from jobs.settings import Settings
from jobs.signing.links import LinkSigner
from jobs.signing.secret import Secrets

P = ParamSpec("P")
T = TypeVar("T")


@dataclass
class Services:
    """The parts of one API process."""

    settings: Settings
    engine: Engine
    repository: Repository
    store: ArtifactStore
    signer: LinkSigner
    publisher: Publisher
    secrets: Secrets
    authenticator: Authenticator
    notifier: Notifier
    metrics: HttpMetrics
    issuers: Issuers
    outbox_filled: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a job was queued here: the dispatcher need not wait for its next round."""
    rounds: dict[str, float] = field(default_factory=dict)
    """When each background loop of this process last ended a round, in seconds since the epoch."""
    feeds: Feeds = field(default_factory=Feeds)
    """The live lists that somebody looks at."""
    loop: asyncio.AbstractEventLoop | None = None
    """The loop that the background work runs on, while it runs."""
    kept_bytes: list[tuple[float, dict[str, int]]] = field(default_factory=list)
    """What each tenant's files take, and when that was added up."""

    def wake_dispatcher(self) -> None:
        """Let the dispatcher look at the outbox now; may be called from any thread."""
        if self.loop is not None and not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.outbox_filled.set)

    async def quickly(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a read by primary key: at once on SQLite, where a thread would cost more than the read itself.

        A WAL reader never waits for a writer, so this can't hold up the event loop. Postgres is a network
        away and gets a thread.
        """
        if self.engine.dialect.name == "sqlite":
            return call(*args, **kwargs)
        return await run_in_threadpool(call, *args, **kwargs)


async def services_of(request: Request) -> Services:
    """The services of the app that got this request (async: a plain function would cost a pool thread)."""
    found: Any = request.app.state.services
    if not isinstance(found, Services):
        raise TypeError("the app has no services: make it with api.main.create_app")
    return found


def acting(services: Services, request: Request, principal: Principal) -> Repository:
    """The repository for what this caller writes: it enters the caller and the request in the audit."""
    return services.repository.on_behalf(principal.actor, request.scope["request_id"])


WithServices = Annotated[Services, Depends(services_of)]
