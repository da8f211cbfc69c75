"""Spans from the request that created a job down to the engine's stages, if an OTLP endpoint is configured.

The engine's process knows nothing of it: its progress reports say when a stage begins, and the supervisor,
which holds the exporter's connection, turns them into spans.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry import trace
from opentelemetry.trace import Span, Status, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from jobs.rows import Claim
from jobs.settings import Settings
from worker.attempt.outcomes import Finished, Outcome


def configure_tracing(settings: Settings) -> None:
    """Send spans to `otlp_endpoint`; without one every span is a no-op."""
    if settings.otlp_endpoint is None:
        return
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider(resource=Resource.create({"service.name": "optipfair-worker"}))
    endpoint = settings.otlp_endpoint.rstrip("/") + "/v1/traces"
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
    trace.set_tracer_provider(provider)


class AttemptTrace:
    """The span of one attempt, with one child for the stage that the engine is in."""

    def __init__(self, tracer: Tracer, span: Span) -> None:
        self._tracer, self._span = tracer, span
        self._stage: tuple[str, Span] | None = None

    def stage(self, name: str) -> None:
        """The engine is in this stage now; the span of the one before ends."""
        if self._stage is not None and self._stage[0] == name:
            return
        self.end_stage()
        context = trace.set_span_in_context(self._span)
        self._stage = (name, self._tracer.start_span(f"engine {name}", context))

    def end_stage(self) -> None:
        """No stage is running any more."""
        if self._stage is not None:
            self._stage[1].end()
            self._stage = None

    def outcome(self, outcome: Outcome) -> None:
        """How the attempt ended."""
        self.end_stage()
        self._span.set_attribute("optipfair.outcome", type(outcome).__name__.lower())
        if not isinstance(outcome, Finished):
            self._span.set_status(Status(StatusCode.ERROR, getattr(outcome, "code", None)))


@contextmanager
def traced_attempt(claim: Claim) -> Iterator[AttemptTrace]:
    """The attempt's span, a child of the span in which the job was created."""
    carrier = {"traceparent": claim.job.traceparent} if claim.job.traceparent else {}
    context = TraceContextTextMapPropagator().extract(carrier)
    tracer = trace.get_tracer("optipfair.worker")
    attributes: dict[str, str | int] = {
        "optipfair.job.id": claim.job.id,
        "optipfair.job.kind": claim.job.kind,
        "optipfair.attempt": claim.attempt,
    }
    with tracer.start_as_current_span(f"attempt {claim.job.kind}", context, attributes=attributes) as span:
        attempt = AttemptTrace(tracer, span)
        try:
            yield attempt
        finally:
            attempt.end_stage()
