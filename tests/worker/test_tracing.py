"""Spans lead from the request that created a job to the stages of its engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from jobs.rows import Job
from jobs.specs import parse_request
from worker.attempt.supervisor import run_job
from worker.services import Services

from .conftest import RESULT, ScriptedEngine

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    """Spans end up in memory; the process's tracer provider is left alone."""
    spans = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    yield spans
    provider.shutdown()


def traced_job(services: Services) -> Job:
    body = {"kind": "analyze", "spec": {"model": {"source": "local", "name": "tiny"}}}
    parent = f"00-{TRACE}-{PARENT}-01"
    return services.repository.create_job("acme", parse_request(body), queue="cpu", traceparent=parent)


def progress(stage: str, done: int) -> dict[str, object]:
    return {"type": "progress", "stage": stage, "done": done, "total": 2, "message": ""}


def test_stages_are_children_of_the_attempt_and_the_attempt_of_the_request(
    services: Services, engine: type[ScriptedEngine], exporter: InMemorySpanExporter
) -> None:
    engine.script = [progress("load", 1), progress("load", 2), progress("plot", 1), RESULT]
    run_job(services, traced_job(services).id)
    spans = {span.name: span for span in exporter.get_finished_spans()}
    assert set(spans) == {"attempt analyze", "engine load", "engine plot"}
    attempt = spans["attempt analyze"]
    assert attempt.context is not None and f"{attempt.context.trace_id:032x}" == TRACE
    assert attempt.parent is not None and f"{attempt.parent.span_id:016x}" == PARENT
    for name in ("engine load", "engine plot"):
        parent = spans[name].parent
        assert parent is not None and parent.span_id == attempt.context.span_id
    assert attempt.status.status_code is StatusCode.UNSET


def test_a_failed_attempt_is_an_error_with_its_code(
    services: Services,
    engine: type[ScriptedEngine],
    exporter: InMemorySpanExporter,
    new_job: Callable[..., Job],
) -> None:
    engine.script = [{"type": "error", "code": "tokenizer_error", "message": "", "retry": False}]
    run_job(services, new_job().id)
    (span,) = exporter.get_finished_spans()
    assert span.status.status_code is StatusCode.ERROR
    assert span.status.description == "tokenizer_error"
