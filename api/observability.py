"""Prometheus metrics and OpenTelemetry context of the HTTP side."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from opentelemetry.propagate import inject
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0)
_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
METRICS_MEDIA_TYPE = CONTENT_TYPE_LATEST


class HttpMetrics:
    """Counters of one process, in a registry of their own (the default registry is global state)."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        labels = ("method", "route", "status")
        self._requests = Counter(
            "optipfair_http_requests", "Requests answered", labels, registry=self.registry
        )
        self._seconds = Histogram(
            "optipfair_http_request_seconds",
            "Seconds from the first byte of a request to the end of its answer",
            ("method", "route"),
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self.loop_errors = Counter(
            "optipfair_loop_errors",
            "Rounds of a background loop that failed",
            ("loop",),
            registry=self.registry,
        )

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one answered request; routes are templates and odd methods one, so labels stay few."""
        method = method if method in _METHODS else "OTHER"
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(method, route).observe(seconds)


@dataclass(frozen=True)
class Gauge:
    """One gauge as the database reports it: name, help, and a value per label set."""

    name: str
    documentation: str
    labels: tuple[str, ...]
    samples: Sequence[tuple[tuple[str, ...], float]]


class _Snapshot(Collector):
    def __init__(self, gauges: Iterable[Gauge], figures: Iterable[Metric]) -> None:
        self._gauges, self._figures = list(gauges), list(figures)

    def collect(self) -> Iterable[Metric]:
        for gauge in self._gauges:
            family = GaugeMetricFamily(gauge.name, gauge.documentation, labels=gauge.labels)
            for labels, value in gauge.samples:
                family.add_metric(labels, value)
            yield family
        yield from self._figures


def render(
    gauges: Iterable[Gauge], metrics: HttpMetrics | None = None, figures: Iterable[Metric] = ()
) -> bytes:
    """The text of `/metrics`: what the database says now, and this process's HTTP counters if given."""
    registry = CollectorRegistry()
    registry.register(_Snapshot(gauges, figures))
    return generate_latest(registry) + (b"" if metrics is None else generate_latest(metrics.registry))


def make_tracer_provider(endpoint: str) -> TracerProvider:
    """Traces to an OTLP/HTTP collector at `endpoint` (its base URL), as the service `optipfair-api`.

    The SDK is loaded only when a collector is configured.
    """
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider(resource=Resource.create({"service.name": "optipfair-api"}))
    exporter = OTLPSpanExporter(endpoint=endpoint.rstrip("/") + "/v1/traces")
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider


def trace_context() -> Mapping[str, str]:
    """W3C trace context of the current request, to travel with the job; empty when nothing is traced."""
    carrier: dict[str, str] = {}
    inject(carrier)
    return carrier
