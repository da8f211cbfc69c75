"""The app factory: `uvicorn api.main:app`, or `create_app(settings)` in the service's own entry point."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from pydantic.warnings import UnsupportedFieldAttributeWarning
from starlette.staticfiles import StaticFiles

from api import failures, operations
from api.auth import AnyKey, Authenticator
from api.background.loops import background
from api.context import Services
from api.middleware import BodyLimitMiddleware, RequestContextMiddleware
from api.observability import HttpMetrics, make_tracer_provider
from api.ratelimit import RateLimiter
from api.routes.later import LaterRouter, load_all
from api.tokens.issuers import Issuers
from api.waiting.notifier import Notifier
from jobs.absent import without
from jobs.artifacts import make_store
from jobs.database import connect
from jobs.patience import REQUEST
from jobs.queue import Publisher
from jobs.repository import Repository
from jobs.settings import Settings, read_settings
from jobs.signing.links import LinkSigner
from jobs.signing.secret import ensure_secret, load_secrets
from jobs.specs import prepare

# FastAPI says so too wherever it makes fields, but a second thread that does would lift its filter.
warnings.filterwarnings("ignore", category=UnsupportedFieldAttributeWarning)

with without("pydantic.v1"):  # FastAPI asks of every type whether it is a model of that
    from api.routes import artifacts, health, jobs, logs, results

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

_STATIC = Path(__file__).resolve().parent / "static"
_DESCRIPTION = (
    "Structured pruning and bias analysis of language models as jobs. "
    "Errors are problem documents (RFC 9457) with a `code`; keys go in `Authorization: Bearer ofk_…`."
)


@dataclass(frozen=True)
class Options:
    """What a test may want otherwise."""

    background: bool = True
    """Whether this process publishes, sweeps, delivers and purges."""


def create_app(settings: Settings, options: Options | None = None) -> FastAPI:
    """The API with everything behind it.

    Args:
        settings: read by the entry point; nothing here looks at the environment.
        options: whether to run the background loops.
    """
    chosen = options or Options()
    services = make_services(settings)
    tracer = make_tracer_provider(settings.otlp_endpoint) if settings.otlp_endpoint else None
    app = make_routes(services.metrics, tracer=tracer)
    app.state.tracer = tracer
    app.state.services = services
    app.state.background = chosen.background
    return app


def make_services(settings: Settings) -> Services:
    """The parts of one API process; connections are opened when they are first used."""
    ensure_secret(settings.secret_file)
    secrets = load_secrets(settings.secret_file)
    engine = connect(settings.database_url, pool_size=20, patience=REQUEST)
    repository = Repository(engine, settings)
    authenticator = Authenticator(
        repository,
        secrets,
        requests=RateLimiter(settings.requests_per_minute),
        failures=RateLimiter(settings.wrong_keys_per_minute),
    )
    return Services(
        settings=settings,
        engine=engine,
        repository=repository,
        store=make_store(settings, patience=REQUEST),
        signer=LinkSigner(secrets),
        publisher=Publisher(settings),
        secrets=secrets,
        authenticator=authenticator,
        notifier=Notifier(repository),
        metrics=HttpMetrics(),
        issuers=Issuers(allow_loopback=settings.allow_loopback_webhooks),
    )


def make_routes(metrics: HttpMetrics, *, tracer: TracerProvider | None = None) -> FastAPI:
    """The paths and middleware, without anything behind them (enough for the OpenAPI document)."""
    app = FastAPI(
        title="OptiPFair Service",
        version=_version(),
        description=_DESCRIPTION,
        docs_url=None,  # their pages load scripts from other hosts, which the security policy refuses
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
        lifespan=_lifespan,
        telemetry={
            "auto_configure": False,
            "tracing": tracer is not None,
            "tracer_provider": tracer,
            "metrics": False,  # these are Prometheus'
            "logs": False,
            "operation_spans": False,
        },
    )
    for router in (
        *(module.router for module in (jobs, results, logs, artifacts)),
        LaterRouter("download", "/v1/download"),
        LaterRouter("models", "/v1/models", "/v1/calibrations", "/v1/suites"),
        LaterRouter("uploads", "/v1/uploads"),
        LaterRouter("webhooks", "/v1/webhooks"),
        LaterRouter("keys", "/v1/keys"),
        LaterRouter("tenants", "/v1/tenants"),
        LaterRouter("tokens", "/v1/trust", "/v1/token", "/v1/audit"),
        LaterRouter("system", "/v1/system"),
        health.router,
        LaterRouter("dashboard", "/", "/jobs", "/ui"),
    ):
        app.include_router(router)
    _add_openapi_path(app)
    app.mount("/static", StaticFiles(directory=_STATIC), name="static")
    failures.install(app)
    operations.install(app)
    app.add_middleware(BodyLimitMiddleware)
    app.add_middleware(RequestContextMiddleware, metrics=metrics)
    return app


def _add_openapi_path(app: FastAPI) -> None:
    @app.get("/openapi.json", include_in_schema=False)
    async def openapi_json(principal: AnyKey) -> dict[str, Any]:
        return app.openapi()


def _prepare(app: FastAPI) -> None:
    """Make, behind the start, what the first of some requests would wait for otherwise."""
    import jobs.admission  # noqa: F401 - for the creation of jobs

    prepare()
    load_all(app.routes)


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    services: Services = app.state.services
    services.loop = asyncio.get_running_loop()
    preparing = services.loop.run_in_executor(None, _prepare, app)
    try:
        if app.state.background:
            async with background(services):
                yield
        else:
            yield
    finally:
        services.loop = None
        await preparing
        await services.notifier.close()
        services.publisher.close()
        services.engine.dispose()
        if app.state.tracer is not None:
            await asyncio.to_thread(app.state.tracer.shutdown)  # sends what is left


def _version() -> str:
    try:
        return version("optipfair-service")
    except PackageNotFoundError:
        return "0"


def __getattr__(name: str) -> FastAPI:
    """`api.main:app`, made when it is first asked for, with settings from the environment."""
    if name != "app":
        raise AttributeError(name)
    globals()["app"] = made = create_app(read_settings())
    return made
