"""OpenTelemetry spans of requests and batches; without a collector the API's no-op tracer."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol

from opentelemetry.context import Context
from opentelemetry.trace import INVALID_SPAN, Span, SpanKind, Tracer, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from alarm_service.settings import Settings, SettingsError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor, TracerProvider

__all__ = ["TRACER_NAME", "open_tracer_provider", "record_batch", "request_span", "tracer_provider"]

TRACER_NAME = "alarm_service"

_propagator = TraceContextTextMapPropagator()


class _Named(Protocol):
    @property
    def name(self) -> str: ...


class _Queued(Protocol):
    @property
    def model(self) -> _Named: ...
    @property
    def since(self) -> float: ...
    @property
    def span(self) -> Span: ...


def request_span(
    tracer: Tracer, name: str, headers: Mapping[str, str]
) -> AbstractContextManager[Span]:
    """Start the span of a request, as a child of the span that its `traceparent` names."""
    parent = _propagator.extract(headers, context=Context())
    return tracer.start_as_current_span(name, parent, SpanKind.SERVER)


def record_batch(tracer: Tracer, batch: Sequence[_Queued], started: float, ended: float) -> None:
    """Record how long each request's samples in a batch were queued and ran.

    Times are monotonic seconds. A request has one pair of spans, `queue` and `forward`, per batch.
    """
    by_span: dict[Span, list[_Queued]] = {}
    for sample in batch:
        if sample.span is not INVALID_SPAN:  # it may have ended: the response may be sent first
            by_span.setdefault(sample.span, []).append(sample)
    wall_ns = time.time_ns() - time.monotonic_ns()
    for span, own in by_span.items():
        attributes: dict[str, str | int] = {
            "alarm.model": own[0].model.name,
            "alarm.num_samples": len(own),
            "alarm.num_batch_samples": len(batch),
        }
        queued = min(sample.since for sample in own)
        for name, begin, end in (("queue", queued, started), ("forward", started, ended)):
            tracer.start_span(
                name,
                set_span_in_context(span, Context()),
                attributes=attributes,
                start_time=wall_ns + round(begin * 1e9),
            ).end(wall_ns + round(end * 1e9))


def tracer_provider(processor: SpanProcessor) -> TracerProvider:
    """Return a provider of the OpenTelemetry SDK, which is imported only here."""
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider

    provider = TracerProvider(resource=Resource.create({"service.name": "alarm"}))
    provider.add_span_processor(processor)
    return provider


def open_tracer_provider(settings: Settings) -> TracerProvider | None:
    """Return a provider that exports to `--traces`, or None if that is not set.

    Raises `SettingsError` if the exporter is not installed.
    """
    if settings.traces is None:
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise SettingsError(
            f"--traces needs packages that are not installed ({error}): "
            "pip install 'alarm-service[traces]'"
        ) from error
    return tracer_provider(BatchSpanProcessor(OTLPSpanExporter(endpoint=settings.traces)))
