"""OpenTelemetry traces of requests, where they are asked for; nothing is done where not."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Protocol

from alarm_service.settings import Settings, SettingsError

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import SpanProcessor

__all__ = ["NoTraces", "OtelTraces", "Traces", "open_traces"]


class _Named(Protocol):
    @property
    def name(self) -> str: ...


class _Waited(Protocol):
    @property
    def model(self) -> _Named: ...
    @property
    def since(self) -> float: ...
    @property
    def trace(self) -> object: ...


class Traces(Protocol):
    """What the server tells of a request's way; a trace is what `current` returned."""

    @property
    def is_on(self) -> bool:
        """Whether anybody listens."""

    def request(
        self, name: str, headers: Mapping[str, str]
    ) -> AbstractContextManager[dict[str, object]]:
        """Span a request, within the trace that its `traceparent` names; takes attributes."""

    def span(self, name: str) -> AbstractContextManager[object]:
        """Span a step of the request that runs."""

    def current(self) -> object:
        """Return the trace of the request that runs, for another thread to go on with."""

    def batch(self, works: Sequence[_Waited], started: float, ended: float) -> None:
        """Tell each request in a batch how long it waited and ran; times are monotonic seconds."""

    def close(self) -> None:
        """Send what was not sent yet."""


class NoTraces:
    """Nobody listens, and nothing is done."""

    is_on = False

    def request(
        self, name: str, headers: Mapping[str, str]
    ) -> AbstractContextManager[dict[str, object]]:
        """Do nothing."""
        return nullcontext({})

    def span(self, name: str) -> AbstractContextManager[object]:
        """Do nothing."""
        return nullcontext()

    def current(self) -> object:
        """Return nothing."""
        return None

    def batch(self, works: Sequence[_Waited], started: float, ended: float) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class OtelTraces:
    """Spans by the OpenTelemetry SDK, which is imported only here."""

    is_on = True

    def __init__(self, processor: SpanProcessor) -> None:
        from opentelemetry import context, trace
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._context, self._trace = context, trace
        self._provider = TracerProvider(resource=Resource.create({"service.name": "alarm"}))
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("alarm_service")
        self._propagator = TraceContextTextMapPropagator()

    @contextmanager
    def request(self, name: str, headers: Mapping[str, str]) -> Iterator[dict[str, object]]:
        """Span a request, within the trace that its `traceparent` names; takes attributes."""
        attributes: dict[str, object] = {}
        with self._tracer.start_as_current_span(
            name,
            self._propagator.extract(headers, context=self._context.Context()),
            self._trace.SpanKind.SERVER,
        ) as span:
            try:
                yield attributes
            finally:
                span.set_attributes({key: str(value) for key, value in attributes.items()})

    def span(self, name: str) -> AbstractContextManager[object]:
        """Span a step of the request that runs."""
        return self._tracer.start_as_current_span(name)

    def current(self) -> Context | None:
        """Return the trace of the request that runs; None for work that no request asked for."""
        here = self._context.get_current()
        return here if self._trace.get_current_span(here).get_span_context().is_valid else None

    def batch(self, works: Sequence[_Waited], started: float, ended: float) -> None:
        """Tell each request in a batch how long it waited and ran; times are monotonic seconds."""
        by_trace: dict[int, list[_Waited]] = {}
        for work in works:
            if work.trace is not None:
                by_trace.setdefault(id(work.trace), []).append(work)
        wall_ns = time.time_ns() - time.monotonic_ns()
        for own in by_trace.values():
            attributes: dict[str, str | int] = {
                "alarm.model": own[0].model.name,
                "alarm.num_samples": len(own),
                "alarm.num_batch_samples": len(works),
            }
            arrived = min(work.since for work in own)
            for name, begin, end in (("queue", arrived, started), ("forward", started, ended)):
                self._tracer.start_span(
                    name,
                    own[0].trace,  # type: ignore[arg-type]  # what `current` returned
                    attributes=attributes,
                    start_time=wall_ns + round(begin * 1e9),
                ).end(wall_ns + round(end * 1e9))

    def close(self) -> None:
        """Send what was not sent yet."""
        self._provider.shutdown()


def open_traces(settings: Settings) -> Traces:
    """Return traces to the address in the options; raise `SettingsError` without the packages."""
    if settings.traces is None:
        return NoTraces()
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise SettingsError(
            f"--traces needs packages that are not here ({error}): "
            "pip install 'alarm-service[traces]'"
        ) from error
    return OtelTraces(BatchSpanProcessor(OTLPSpanExporter(endpoint=settings.traces)))
